"""The parts of an expert: its base bundle, and its adapter in the form that is bound."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.adapters.base_weights import BaseWeights
from hivellm_ort.adapters.prepare import Embeddings, prepare
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.adapters.tensors import table_digest
from hivellm_ort.contract import CONTRACT_VERSION
from hivellm_ort.engine.devices import Device
from hivellm_ort.errors import AdapterError, LoadError
from hivellm_ort.loading.adapter_files import AdapterFiles, find_adapter_files
from hivellm_ort.loading.bases import bundles_beside, choose_base, find_thin_base, model_of
from hivellm_ort.loading.bundles import Bundle, best_first
from hivellm_ort.loading.own_tokenizer import TOKENIZER, check_tokenizer
from hivellm_ort.package.bundle_folders import check_folders
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.manifest import BaseModelRef, ExpertManifest
from hivellm_ort.package.store import Store, UnpackedPackage

__all__ = ["ExpertParts", "find_parts"]


@dataclass(frozen=True)
class ExpertParts:
    """What is loaded for one expert.

    Attributes:
        bundle: the base bundle.
        adapter: the adapter; None where it is merged into the base.
        model: the base model of the manifest that the bundle is.
        folder: where the expert's own chat template and tokenizer are, if it has any.
        packaged: whether the bundle came in the expert's package, so that its signature is about it too.
    """

    bundle: Bundle
    adapter: PreparedAdapter | None
    model: BaseModelRef
    folder: Path
    packaged: bool


def find_parts(
    package: UnpackedPackage,
    manifest: ExpertManifest,
    store: Store,
    base: Path | None = None,
    check: Check = "size",
    *,
    device: Device = Device(),  # noqa: B008  immutable
    beside: Path | None = None,
) -> ExpertParts:
    """Find the base of a package, and its adapter: as exported, or prepared now from its PEFT files.

    An adapter prepared here is kept in the store, named by the digests of its files and of the bundle.

    Args:
        package: the package.
        manifest: its manifest.
        store: where bundles and prepared adapters are.
        base: the bundle to use, as the caller asked; its target is then the one.
        check: how the files of `base`, and of an adapter that was prepared before, are compared with their lists.
        device: what the base shall run on, which decides between the targets of a package.
        beside: the folder that the package is in, where a thin one looks for `base/` first.

    Raises:
        IntegrityError: a file of `base` differs from its list.
        LoadError: the adapter or the base is missing, or they do not fit each other.
        ProviderError: the device runs none of the targets that there are.
    """
    own = _own_bundle(package, manifest, store, base, check, device)
    packaged = own is not None and base is None
    near = [] if own is not None or beside is None else bundles_beside(beside)
    if package.adapter is not None:
        adapter = PreparedAdapter.from_file(package.adapter, sha256=package.digest(package.adapter))
        bundle = own or find_thin_base(adapter, store, device, near, check)
        if bundle.config.merged is not None:
            raise LoadError(f"{manifest.name}: the base bundle has another adapter merged in already")
        return ExpertParts(bundle, adapter, model_of(bundle, manifest), package.root, packaged)
    if base is None and own is not None and own.config.merged is not None:
        return ExpertParts(own, None, model_of(own, manifest), package.root, packaged)
    bundle, model = choose_base(manifest, store, device, own, near, check)
    files = find_adapter_files(package, manifest, model)
    return ExpertParts(bundle, _prepared(package, files, store, bundle, check), model, files.own, packaged)


def _own_bundle(
    package: UnpackedPackage,
    manifest: ExpertManifest,
    store: Store,
    base: Path | None,
    check: Check,
    device: Device,
) -> Bundle | None:
    """The bundle that the caller asked for, else the package's for the device; None where the package is thin."""
    if base is not None:
        bundle = Bundle.open(base)  # says better than a missing list that the folder is no bundle
        check_folders([base], check)
        return bundle
    if not package.bundles:
        return None
    best = best_first([Bundle.open(folder) for folder in package.bundles], device, whose=manifest.name)[0]
    return dataclasses.replace(best, folder=store.gathered(best.folder, package))


def _prepared(
    package: UnpackedPackage, files: AdapterFiles, store: Store, bundle: Bundle, check: Check
) -> PreparedAdapter:
    digests = [package.digest(files.config), package.digest(files.weights), bundle.config.sha256]
    if (files.own / TOKENIZER).is_file():  # what it is checked for is in all of these
        digests += [package.digest(path) for path in files.texts]
    key = hashlib.sha256("\n".join((CONTRACT_VERSION, *digests)).encode()).hexdigest()
    try:
        path = store.prepared(key, lambda: _prepare(files, bundle), check=check)
    except AdapterError as error:
        if package.sha256:
            raise
        raise type(error)(f"{files.weights.resolve().parent.name}/{error}") from error
    return PreparedAdapter.from_file(path)


def _prepare(files: AdapterFiles, bundle: Bundle) -> bytes:
    config = bundle.config
    check_tokenizer(files.own, bundle.folder / TOKENIZER)
    adapter = prepare(
        files.config,
        files.weights,
        sites=config.sites,
        tensor=BaseWeights(bundle.folder, config).tensor,
        source_sha256=config.source_sha256,
        embeddings=Embeddings(
            config.architecture.vocab_size,
            lambda name, rows: (
                None if (known := config.embeddings.get(name)) is None else table_digest(rows) == known
            ),
        ),
    )
    return dataclasses.replace(adapter, base_sha256=config.sha256).to_bytes()
