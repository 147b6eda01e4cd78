"""One export from start to end. Everything is made in a folder beside the output, and moved there at the end."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hivellm_export.base_model import BaseModel, load_base
from hivellm_export.graph.lower import sites_of
from hivellm_export.graph.split_qkv import split_qkv
from hivellm_export.graph.trace import trace_decoder
from hivellm_export.merge import merge
from hivellm_export.packaging.bundle import write_bundle
from hivellm_export.packaging.output_folder import built_beside
from hivellm_export.packaging.package import ExpertSource, write_package
from hivellm_export.targets import Plan, plan_bundles
from hivellm_export.verify.report import Verification, skip_reason
from hivellm_export.verify.run import Exported, verify
from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.prepare import Embeddings, prepare
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.adapters.tensors import same_values
from hivellm_ort.contract import Site
from hivellm_ort.engine.environment import cpu_flags
from hivellm_ort.errors import AdapterError, ExportError
from hivellm_ort.loading.adapter_tokenizer import check_tokenizer
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.paths import StrPath

__all__ = ["BundleReport", "ExportReport", "PackageReport", "export"]

_BASE_FOLDER = "base"


@dataclass(frozen=True)
class PackageReport:
    """One package that was written.

    Attributes:
        name: Name of the expert.
        version: Version of the expert.
        file: Name of the file in the output folder.
        size: Size in bytes.
        sha256: Digest of the file, hex.
        kind: Kind of the adapter, or `merged`.
        rank: Rank of the adapter; 0 if merged.
        verification: One for each bundle of the export; empty if the export was not verified.
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str
    kind: str
    rank: int
    verification: list[Verification] = field(default_factory=list)


@dataclass(frozen=True)
class BundleReport:
    """One base bundle that was made.

    Attributes:
        target: Target of its graphs.
        precision: Precision of its weights.
        cache: Type of keys and values.
        sha256: Its digest, hex.
        folder: Its folder within the output; None if it is only inside packages.
        reason: Why this precision was chosen; empty if it was given.
        verification: How its answers compare with those of transformers; None if the export was not verified.
    """

    target: str
    precision: str
    cache: str
    sha256: str
    folder: str | None
    reason: str = ""
    verification: Verification | None = None


@dataclass(frozen=True)
class ExportReport:
    """What an export has made.

    Attributes:
        output: The output folder.
        base: Name of the base model.
        source_sha256: Digest of the base's weight files, hex.
        bundles: One for each target.
        packages: One for each expert.
        seconds: Duration of the export.
        base_origin: Where the name `base` comes from; empty if from the folder or file itself.
        unverified: Why the export was not verified; empty if it was.
        verify_seconds: Duration of the verification, part of `seconds`.
    """

    output: str
    base: str
    source_sha256: str
    bundles: list[BundleReport] = field(default_factory=list)
    packages: list[PackageReport] = field(default_factory=list)
    seconds: float = 0.0
    base_origin: str = ""
    unverified: str = ""
    verify_seconds: float = 0.0


def export(
    base: StrPath,
    experts: Sequence[StrPath],
    output: StrPath,
    *,
    precision: str | Sequence[str] | None = None,
    target: str | Sequence[str] = "cpu",
    context: int | None = None,
    cache: str | None = None,
    merged: bool = False,
    thin: bool = False,
    force: bool = False,
    tokenizer: StrPath | None = None,
    verify: bool | None = None,
) -> ExportReport:
    """Export `base` and `experts` to `output`.

    Without experts, `output` becomes the base bundle. With experts, it holds a package for each, and with `thin` also
    the base bundle, in `base/`. With several targets, each bundle is in a folder with the name of its target.

    Args:
        base: A Hugging Face folder or a `.gguf` file.
        experts: Folders, each with a manifest and a PEFT adapter.
        output: The folder to write to.
        precision: Precision of the weights, one or a list; with several targets as `TARGET=PRECISION`. `auto` chooses
            by model size and this machine's CPU. None is the default of each target.
        target: One or several of `hivellm_export.targets.TARGETS`.
        context: Length of the cache in tokens, for targets with fixed shapes.
        cache: Type of keys and values of target `cpu`: `int8`, or None for that of the precision.
        merged: Merge the one expert into the weights.
        thin: Write packages without the bundle.
        force: Replace files of the same names in `output`.
        tokenizer: Folder of a tokenizer that replaces the base's own. It must fit the base.
        verify: Compare the export with transformers, PEFT and the files of the base before it is written. None does
            so if this is expected to take under a minute.

    Returns:
        What was made.

    Raises:
        ExpertError: An input is wrong, verification fails, or `output` is in use. Then nothing is written.
    """
    begin = time.perf_counter()
    base, output = Path(base), Path(output)
    tokenizer = Path(tokenizer) if tokenizer is not None else None
    if merged and (len(experts) != 1 or thin):
        raise ExportError("--merge takes exactly one --expert and no --thin: the merged base is the expert")
    plans = plan_bundles(_listed(target), _listed(precision or ()), context, cache)
    sources = [ExpertSource.from_folder(folder) for folder in experts]
    _check_names(sources)
    with built_beside(output, force=force) as work:
        model = load_base(base, tokenizer)
        for source in sources:
            source.check_base(model.source_sha256)
        count = sum(parameter.numel() for parameter in model.model.parameters())
        plans = tuple(plan.settled(count, cpu_flags()) for plan in plans)
        unverified = skip_reason(count, len(plans), len(sources)) if verify is None else ""
        if verify is False:
            unverified = "it was switched off"
        report = _export(
            model,
            sources,
            work,
            plans,
            merged=merged,
            thin=thin,
            unverified=unverified,
            source=base,
            tokenizer=tokenizer,
        )
    return dataclasses.replace(report, output=str(output), seconds=time.perf_counter() - begin)


def _export(
    model: BaseModel,
    experts: list[ExpertSource],
    work: Path,
    plans: Sequence[Plan],
    *,
    merged: bool,
    thin: bool,
    unverified: str,
    source: Path,
    tokenizer: Path | None,
) -> ExportReport:
    """Make everything in `work`. At the end `work/products` holds what belongs to the output."""
    products = work / "products"
    forms = [plan.form(model.architecture) for plan in plans]
    unmerged = copy.deepcopy(model.model) if merged and not unverified else None  # a merge changes the model
    digest = None
    if merged:
        with _naming(experts[0]):
            model, digest = merge(model, experts[0].folder)
    joined = trace_decoder(model.model)
    traces = [joined if plan.target.packed else split_qkv(joined) for plan in plans]
    sites = [sites_of(trace, model.has_bias) for trace in traces]
    # Before the weights, which take minutes: most mistakes are in adapters. All targets share a prepared adapter.
    adapters = [None if merged else _prepared(expert, model, sites[0]) for expert in experts]
    folders = [work / "bundles" / plan.target.name for plan in plans]
    bundles = []
    for plan, form, trace, own, folder in zip(plans, forms, traces, sites, folders, strict=True):
        folder.mkdir(parents=True)
        config = write_bundle(
            model,
            folder,
            trace=trace,
            sites=own,
            precision=plan.precision,
            target=plan.target,
            form=form,
            merged=digest,
        )
        cache = config.graph.cache_dtype
        bundles.append(BundleReport(config.target, config.precision, cache, config.sha256, None, plan.reason))
    products.mkdir()
    packages = [
        _packaged(expert, adapter, products, base_sha256=bundles[0].sha256, bundles=() if thin else folders)
        for expert, adapter in zip(experts, adapters, strict=True)
    ]
    begin = time.perf_counter()
    if not unverified:
        of_bundles, of_packages = verify(
            Exported(
                base=model,
                source=source,
                tokenizer=tokenizer,
                bundles=list(zip(folders, sites, strict=True)),
                experts=[(expert.folder, products / expert.package_name) for expert in experts],
                unmerged=unmerged,
                thin=thin,
            )
        )
        bundles = [
            dataclasses.replace(one, verification=found)
            for one, found in zip(bundles, of_bundles, strict=True)
        ]
        packages = [
            dataclasses.replace(one, verification=found)
            for one, found in zip(packages, of_packages, strict=True)
        ]
    seconds = time.perf_counter() - begin
    if not packages:
        bundles = _moved(bundles, folders, products, ".")
    elif thin:
        bundles = _moved(bundles, folders, products, _BASE_FOLDER)
    return ExportReport(
        output="",
        base=model.name,
        source_sha256=model.source_sha256,
        bundles=bundles,
        packages=packages,
        base_origin=model.name_origin,
        unverified=unverified,
        verify_seconds=seconds,
    )


def _prepared(expert: ExpertSource, model: BaseModel, sites: Sequence[Site]) -> PreparedAdapter:
    """Convert the expert's adapter to inputs of the graph."""
    with _naming(expert):
        check_tokenizer(expert.folder, model.tokenizer.backend_tokenizer)
        return prepare(
            expert.folder / ADAPTER_CONFIG,
            expert.folder / ADAPTER_WEIGHTS,
            sites=sites,
            tensor=model.tensor,
            source_sha256=model.source_sha256,
            embeddings=Embeddings(
                model.architecture.vocab_size, lambda name, rows: same_values(rows, model.tensor(name))
            ),
        )


def _packaged(
    expert: ExpertSource,
    adapter: PreparedAdapter | None,
    products: Path,
    *,
    base_sha256: str,
    bundles: Sequence[Path],
) -> PackageReport:
    """Write the expert's package; without an adapter, its bundles have the expert merged in."""
    content, kind, rank = None, "merged", 0
    if adapter is not None:
        content = dataclasses.replace(adapter, base_sha256=base_sha256).to_bytes()
        kind, rank = adapter.kind, adapter.rank
    path = products / expert.package_name
    write_package(path, expert, adapter=content, bundles=bundles)
    name, version = expert.manifest.name, expert.manifest.version
    return PackageReport(name, version, path.name, path.stat().st_size, sha256_file(path), kind, rank)


def _moved(bundles: list[BundleReport], folders: list[Path], products: Path, name: str) -> list[BundleReport]:
    """Move the bundle, or the folder of several, to `products/name`."""
    place = products / name
    if place.is_dir():
        place.rmdir()
    if len(bundles) == 1:
        folders[0].rename(place)
        return [dataclasses.replace(bundles[0], folder=name)]
    folders[0].parent.rename(place)
    return [dataclasses.replace(one, folder=(Path(name) / one.target).as_posix()) for one in bundles]


def _check_names(sources: list[ExpertSource]) -> None:
    names = [source.package_name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ExportError(
                f"two experts would be written to {name}: give them different names or versions"
            )


def _listed(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


@contextlib.contextmanager
def _naming(source: ExpertSource) -> Iterator[None]:
    """Put the expert's folder before errors about its adapter: an export may have several experts."""
    try:
        yield
    except AdapterError as error:
        raise type(error)(f"{source.folder.name}/{error}") from error
