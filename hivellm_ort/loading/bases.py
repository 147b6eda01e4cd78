"""Chooses the base bundle for an expert."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.engine.devices import Device
from hivellm_ort.errors import (
    BaseMismatchError,
    IntegrityError,
    LoadError,
    ManifestError,
    ProviderError,
    argument,
)
from hivellm_ort.loading.bundles import Bundle, has_best_provider, rank_bundles
from hivellm_ort.package.bundle_folders import bundle_folders, check_folders
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.manifest import BaseModelRef, ExpertManifest
from hivellm_ort.package.store import Store

__all__ = ["ADJACENT_FOLDER", "choose_base", "find_adjacent_bundles", "find_base_model", "find_thin_base"]

_LOG = logging.getLogger("hivellm_ort")


ADJACENT_FOLDER = "base"
"""The folder of bundles that `hivellm-ort export --thin` writes beside its packages."""


def find_adjacent_bundles(folder: Path) -> list[Bundle]:
    """Return the bundles in a folder's `base/` that take adapters: one bundle, or one for each target."""
    bundles = _opened(bundle_folders(folder / ADJACENT_FOLDER))
    return [bundle for bundle in bundles if bundle.config.merged is None]


def choose_base(
    manifest: ExpertManifest,
    store: Store,
    device: Device,
    given: Bundle | None,
    adjacent: Sequence[Bundle] = (),
    check: Check = "size",
) -> tuple[Bundle, BaseModelRef]:
    """Choose the bundle for a PEFT adapter, and the base model in the manifest that the bundle is.

    First the bundles beside the package are searched, by the digest of the weights in the manifest. Then the store's
    `models/` and the bundles of unpacked packages are searched, by the digest or else by name.

    Args:
        manifest: Names the bases for which the expert has adapters.
        store: The store with the other bundles.
        device: The device for the base.
        given: The bundle to use: the package's own, or that of the caller. None to search.
        adjacent: The bundles beside the package.
        check: With "digest", bundles beside the package are not used, because no signature covers them.

    Raises:
        BaseMismatchError: `given` is none of the manifest's base models.
        IntegrityError: The bundle differs from its list of files.
        LoadError: No bundle was found, or bundles of different models have the same name.
        ProviderError: The device runs none of the bundles.
    """
    wanted = [base for base in manifest.base_models if base.adapters]
    if given is not None:
        return given, _matching(given, wanted, manifest)
    for base in wanted if check == "size" else ():
        found = [bundle for bundle in adjacent if bundle.config.source_sha256 == base.sha256]
        if found:
            owner = f"base {base.short_name!r} beside the package"
            return _used(rank_bundles(found, device, owner=owner)[0], store), base
    bundles = _at_hand(store)
    for base in wanted:
        found = [bundle for bundle in bundles if _is(bundle, base)]
        if found:
            found = rank_bundles(found, device, owner=f"base {base.short_name!r}")
        if len({bundle.config.source_sha256 for bundle in found}) > 1:
            folders = ", ".join(str(bundle.folder) for bundle in found)
            raise LoadError(
                f"{manifest.name}: several base models are called {base.short_name} ({folders}): pass "
                f"{argument('base', 'FOLDER')}"
            )
        if found:
            return _used(found[0], store), base
    names = ", ".join(base.short_name for base in wanted)
    raise LoadError(
        f"{manifest.name} needs a base bundle of {names}, and none was found: pass "
        f"{argument('base', 'FOLDER')}, or put one into {store.root / 'models'}; 'hivellm-ort export --base' makes it"
    )


def find_base_model(bundle: Bundle, manifest: ExpertManifest) -> BaseModelRef:
    """Return the base model of the manifest that a bundle is, by digest or name; the first if none matches."""
    wanted = [base for base in manifest.base_models if base.adapters]
    return next((base for base in wanted if _is(bundle, base)), wanted[0])


def find_thin_base(
    adapter: PreparedAdapter,
    store: Store,
    device: Device,
    adjacent: Sequence[Bundle] = (),
    check: Check = "size",
) -> Bundle:
    """Find the base of a prepared adapter: among the bundles of the same weights, the best one for the device.

    Bundles beside the package come first. Then comes the bundle with which the adapter was exported. Others are
    searched only if they may be better, because that takes a while.

    Args:
        adapter: The adapter, with the digests of its base.
        store: The store with the other bundles.
        device: The device for the base.
        adjacent: The bundles beside the package.
        check: With "digest", only the bundle with which the adapter was exported is used of those beside the package,
            and all its files are compared with their list.

    Raises:
        LoadError: No bundle was found.
        ProviderError: The device runs none of the bundles.
    """
    found = [
        bundle
        for bundle in adjacent
        if bundle.config.sha256 == adapter.base_sha256
        or (bundle.config.source_sha256 == adapter.source_sha256 and check == "size")
    ]
    fault = None
    if found:
        owner = f"base {found[0].config.name!r} beside the package"
        try:
            return _used(rank_bundles(found, device, owner=owner, exact=adapter.base_sha256)[0], store, check)
        except ProviderError as error:
            fault = error  # the store may have another one
    folder = store.find_bundle(adapter.base_sha256)
    if folder is not None and has_best_provider(exact := Bundle.open(folder), device):
        return exact
    same = [bundle for bundle in _at_hand(store) if bundle.config.source_sha256 == adapter.source_sha256]
    if same:
        owner = f"base {same[0].config.name!r}"
        return _used(rank_bundles(same, device, owner=owner, exact=adapter.base_sha256)[0], store)
    raise fault or LoadError(
        f"the package is thin, and its base bundle {adapter.base_sha256[:12]}… is neither in {ADJACENT_FOLDER}/ "
        f"beside it nor in the cache: pass {argument('base', 'FOLDER')}, a bundle exported from the same base model"
    )


def _used(bundle: Bundle, store: Store, check: Check = "size") -> Bundle:
    """Return a bundle after comparing it with its list of files, and count it as used."""
    check_folders([bundle.folder], check)
    store.note_use(bundle.folder)
    return bundle


def _at_hand(store: Store) -> list[Bundle]:
    """Return the bundles of the store that take adapters."""
    bundles = _opened([*store.models(), *store.bundles()])
    return [bundle for bundle in bundles if bundle.config.merged is None]


def _opened(folders: Iterable[Path]) -> Iterable[Bundle]:
    for folder in folders:
        try:
            yield Bundle.open(folder)
        except (IntegrityError, ManifestError) as error:
            _LOG.warning("%s is skipped: %s", folder, error)


def _is(bundle: Bundle, base: BaseModelRef) -> bool:
    if base.sha256 is not None:
        return bundle.config.source_sha256 == base.sha256
    names = {bundle.config.name, bundle.folder.name, bundle.folder.parent.name}
    return _plain(base.short_name) in map(_plain, names)


def _matching(bundle: Bundle, wanted: list[BaseModelRef], manifest: ExpertManifest) -> BaseModelRef:
    """Return the base model that a bundle is, by digest or name. A single one without a digest always matches."""
    found = next((base for base in wanted if _is(bundle, base)), None)
    if found is not None:
        return found
    if len(wanted) == 1 and wanted[0].sha256 is None:
        _LOG.info("%s names the base %s; %s is used", manifest.name, wanted[0].short_name, bundle.config.name)
        return wanted[0]
    names = ", ".join(base.short_name + (f" ({base.sha256[:12]}…)" if base.sha256 else "") for base in wanted)
    raise BaseMismatchError(
        f"{manifest.name} has adapters for {names}; the base given is {bundle.config.name} with weights "
        f"{bundle.config.source_sha256[:12]}…"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower())
