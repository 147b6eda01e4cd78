"""One export from start to end: everything is made in a folder beside the output, and moved when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hivellm_export.bundle import write_bundle
from hivellm_export.lower import sites_of
from hivellm_export.merge import merge
from hivellm_export.package import ExpertSource, write_package
from hivellm_export.source import BaseModel, load_base
from hivellm_export.targets import Precision, Target, choose_target, graph_form
from hivellm_export.trace import trace_decoder
from hivellm_export.unpack import unpacked
from hivellm_ort.adapters.config import ADAPTER_CONFIG
from hivellm_ort.adapters.prepare import ADAPTER_WEIGHTS, prepare
from hivellm_ort.adapters.prepared import PreparedAdapter
from hivellm_ort.contract import DecoderConfig, GraphForm, Site
from hivellm_ort.errors import AdapterError, ExpertError, ExportError
from hivellm_ort.package.archive import sha256_file

__all__ = ["ExportReport", "PackageReport", "export"]

_BASE_FOLDER = "base"


@dataclass(frozen=True)
class PackageReport:
    """One package that was written: sizes in bytes, digests in hex; `kind` is the adapter's."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    kind: str
    rank: int


@dataclass(frozen=True)
class ExportReport:
    """What an export made. `bundle` is the bundle's folder within `output`, None where it is only in packages."""

    output: str
    base: str
    base_sha256: str
    source_sha256: str
    precision: str
    target: str
    bundle: str | None
    packages: list[PackageReport] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Settings:
    target: Target
    precision: Precision
    form: GraphForm
    merged: bool
    thin: bool


def export(
    base: Path,
    experts: Sequence[Path],
    output: Path,
    *,
    precision: str | None = None,
    target: str = "cpu",
    context: int | None = None,
    merged: bool = False,
    thin: bool = False,
    force: bool = False,
) -> ExportReport:
    """Export `base` and `experts` to `output`.

    Without experts `output` becomes the base bundle. With experts it holds one package each, and with `thin`
    also the bundle they need, in `base/`.

    Args:
        base: a Hugging Face folder or a `.gguf` file.
        experts: folders, each with a manifest and a PEFT adapter.
        output: the folder to write to.
        precision: of the weights; None is the target's default.
        target: what the graphs are for, one of `hivellm_export.targets.TARGETS`.
        context: tokens of the cache, for targets of fixed shapes.
        merged: fold the one expert into the weights.
        thin: leave the bundle out of the packages.
        force: replace what `output` holds of the same names.

    Raises:
        ExpertError: an input is wrong, or `output` is in use; nothing is written then.
    """
    begin = time.perf_counter()
    if merged and (len(experts) != 1 or thin):
        raise ExportError("--merge takes exactly one --expert and no --thin: the merged base is the expert")
    chosen, weights = choose_target(target, precision, context)
    sources = [ExpertSource.from_folder(folder) for folder in experts]
    _check_names(sources)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not force:
        raise ExportError(
            f"{output} exists and is not an empty folder: choose another --output, or use --force"
        )
    with _built_beside(output) as work:
        model = load_base(base)
        for source in sources:
            source.check_base(model.source_sha256)
        form = graph_form(chosen, weights, model.architecture, context)
        settings = _Settings(chosen, weights, form, merged, thin)
        report = _export(model, sources, work, settings)
    return ExportReport(**{**vars(report), "output": str(output), "seconds": time.perf_counter() - begin})


def _export(
    model: BaseModel,
    sources: list[ExpertSource],
    work: Path,
    settings: _Settings,
) -> ExportReport:
    products, bundle = work / "products", work / "bundle"
    adapter_digest = None
    merged, thin = settings.merged, settings.thin
    if merged:
        with _naming(sources[0]):
            model, adapter_digest = merge(model, sources[0].folder)
    trace = trace_decoder(model.model)
    if not settings.target.packed:
        trace = unpacked(trace)
    sites = sites_of(trace, model.has_bias)
    # Before the weights, which take minutes: most mistakes are in an adapter.
    adapters = [None if merged else _prepared(source, model, sites) for source in sources]
    bundle.mkdir()
    config = write_bundle(
        model,
        bundle,
        trace=trace,
        sites=sites,
        precision=settings.precision,
        target=settings.target,
        form=settings.form,
        merged=adapter_digest,
    )
    products.mkdir()
    packages = []
    for source, adapter in zip(sources, adapters, strict=True):
        content, kind, rank = None, "merged", 0
        if adapter is not None:
            content = dataclasses.replace(adapter, base_sha256=config.sha256).to_bytes()
            kind, rank = adapter.kind, adapter.rank
        path = products / source.package_name
        write_package(path, source, adapter=content, bundle=None if thin else bundle)
        packages.append(_package_report(source, path, kind, rank))
    return _place(config, products, bundle, packages, thin)


def _prepared(source: ExpertSource, model: BaseModel, sites: Sequence[Site]) -> PreparedAdapter:
    with _naming(source):
        return prepare(
            source.folder / ADAPTER_CONFIG,
            source.folder / ADAPTER_WEIGHTS,
            sites=sites,
            tensor=model.tensor,
            source_sha256=model.source_sha256,
        )


def _place(
    config: DecoderConfig, products: Path, bundle: Path, packages: list[PackageReport], thin: bool
) -> ExportReport:
    """Arrange what goes to the output in `products`."""
    where: str | None = None
    if not packages:
        products.rmdir()
        bundle.rename(products)
        where = "."
    elif thin:
        bundle.rename(products / _BASE_FOLDER)
        where = _BASE_FOLDER
    return ExportReport(
        output="",
        base=config.name,
        base_sha256=config.sha256,
        source_sha256=config.source_sha256,
        precision=config.precision,
        target=config.target,
        bundle=where,
        packages=packages,
    )


def _package_report(source: ExpertSource, path: Path, kind: str, rank: int) -> PackageReport:
    manifest = source.manifest
    return PackageReport(
        manifest.name, manifest.version, path.name, path.stat().st_size, sha256_file(path), kind, rank
    )


def _check_names(sources: list[ExpertSource]) -> None:
    names = [source.package_name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ExportError(
                f"two experts would both be written to {name}: give them different names or versions"
            )


@contextlib.contextmanager
def _naming(source: ExpertSource) -> Iterator[None]:
    """Put the expert's folder before errors about it: an export may have several."""
    try:
        yield
    except AdapterError as error:
        raise type(error)(f"{source.folder.name}/{error}") from error


@contextlib.contextmanager
def _built_beside(output: Path) -> Iterator[Path]:
    """A working folder whose `products` replace what `output` holds of the same names, if nothing goes wrong."""
    parent = output.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=parent))
    except OSError as error:
        raise ExportError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        yield work
        _move(work / "products", output)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, ExpertError):
            raise ExportError(f"{output}: cannot be written: {error.strerror or error}") from error
        raise
    shutil.rmtree(work)


def _move(products: Path, output: Path) -> None:
    if not output.exists():
        products.rename(output)
        return
    for product in products.iterdir():
        place = output / product.name
        if place.is_dir():
            shutil.rmtree(place)
        product.replace(place)
