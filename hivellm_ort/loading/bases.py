"""Which base bundle an expert runs on."""

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
"""The folder that `hivellm-ort export --thin` writes beside its packages."""


def find_adjacent_bundles(folder: Path) -> list[Bundle]:
    """The bundles in `base/` of a folder: the one there, or one for each target; they take adapters."""
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
    """The bundle for an adapter that was prepared for none, and the base model of the manifest that it is.

    Looked for beside the package, by the digest of the weights that the manifest states; then in the store's
    `models/` and among the bundles of unpacked packages, by that digest, else by name.

    Args:
        manifest: Says which bases the expert has adapters for.
        store: Where bundles are.
        device: What the base shall run on.
        given: The bundle to use: the package's, or as the caller asked.
        adjacent: The bundles beside the package.
        check: With "digest" they are not used: nobody has signed which bundle has those weights.

    Raises:
        BaseMismatchError: `given` is none of the manifest's base models.
        IntegrityError: The bundle that was found differs from its list.
        LoadError: No base model is at hand, or several different ones of the name are.
        ProviderError: The device runs none of its bundles.
    """
    wanted = [base for base in manifest.base_models if base.adapters]
    if given is not None:
        return given, _matching(given, wanted, manifest)
    for base in wanted if check == "size" else ():
        found = [bundle for bundle in adjacent if bundle.config.source_sha256 == base.sha256]
        if found:
            whose = f"base {base.short_name!r} beside the package"
            return _used(rank_bundles(found, device, whose=whose)[0], store), base
    bundles = _at_hand(store)
    for base in wanted:
        found = [bundle for bundle in bundles if _is(bundle, base)]
        if found:
            found = rank_bundles(found, device, whose=f"base {base.short_name!r} at hand")
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
        f"{manifest.name} needs a base bundle of {names}, and none is at hand: pass "
        f"{argument('base', 'FOLDER')}, or put one into {store.root / 'models'}; 'hivellm-ort export --base' makes it"
    )


def find_base_model(bundle: Bundle, manifest: ExpertManifest) -> BaseModelRef:
    """The base model of the manifest that a bundle is, by digest or name; the first where none is."""
    wanted = [base for base in manifest.base_models if base.adapters]
    return next((base for base in wanted if _is(bundle, base)), wanted[0])


def find_thin_base(
    adapter: PreparedAdapter,
    store: Store,
    device: Device,
    adjacent: Sequence[Bundle] = (),
    check: Check = "size",
) -> Bundle:
    """The base of a prepared adapter: of the bundles of the same weights the one that suits the device best.

    Those beside the package come first. The one it was exported with needs no look at the others where they cannot be
    better, for that takes a while.

    Args:
        adapter: Says which base it is for.
        store: Where other bundles are.
        device: What the base shall run on.
        adjacent: The bundles beside the package.
        check: With "digest" the one that the adapter was exported with is the only one of them that is used, and all
            of its files are compared with their list.

    Raises:
        LoadError: None is at hand.
        ProviderError: The device runs none of them.
    """
    found = [
        bundle
        for bundle in adjacent
        if bundle.config.sha256 == adapter.base_sha256
        or (bundle.config.source_sha256 == adapter.source_sha256 and check == "size")
    ]
    fault = None
    if found:
        whose = f"base {found[0].config.name!r} beside the package"
        try:
            return _used(rank_bundles(found, device, whose=whose, exact=adapter.base_sha256)[0], store, check)
        except ProviderError as error:
            fault = error  # another one may be at hand
    folder = store.find_bundle(adapter.base_sha256)
    if folder is not None and has_best_provider(exact := Bundle.open(folder), device):
        return exact
    same = [bundle for bundle in _at_hand(store) if bundle.config.source_sha256 == adapter.source_sha256]
    if same:
        whose = f"base {same[0].config.name!r} at hand"
        return _used(rank_bundles(same, device, whose=whose, exact=adapter.base_sha256)[0], store)
    raise fault or LoadError(
        f"the package is thin, and its base bundle {adapter.base_sha256[:12]}… is neither in {ADJACENT_FOLDER}/ "
        f"beside it nor in the cache: pass {argument('base', 'FOLDER')}, a bundle exported from the same base model"
    )


def _used(bundle: Bundle, store: Store, check: Check = "size") -> Bundle:
    """A bundle that was found; one outside the store is compared with its list only now."""
    check_folders([bundle.folder], check)
    store.note_use(bundle.folder)
    return bundle


def _at_hand(store: Store) -> list[Bundle]:
    """Bundles that take adapters."""
    bundles = _opened([*store.models(), *store.bundles()])
    return [bundle for bundle in bundles if bundle.config.merged is None]


def _opened(folders: Iterable[Path]) -> Iterable[Bundle]:
    for folder in folders:
        try:
            yield Bundle.open(folder)
        except (IntegrityError, ManifestError) as error:
            _LOG.warning("%s is passed over: %s", folder, error)


def _is(bundle: Bundle, base: BaseModelRef) -> bool:
    if base.sha256 is not None:
        return bundle.config.source_sha256 == base.sha256
    names = {bundle.config.name, bundle.folder.name, bundle.folder.parent.name}
    return _plain(base.short_name) in map(_plain, names)


def _matching(bundle: Bundle, wanted: list[BaseModelRef], manifest: ExpertManifest) -> BaseModelRef:
    """The base model that a bundle is, by digest or name; the only one that pins no digest, whatever its name."""
    found = next((base for base in wanted if _is(bundle, base)), None)
    if found is not None:
        return found
    if len(wanted) == 1 and wanted[0].sha256 is None:
        _LOG.info(
            "%s names the base %s, given is %s", manifest.name, wanted[0].short_name, bundle.config.name
        )
        return wanted[0]
    names = ", ".join(base.short_name + (f" ({base.sha256[:12]}…)" if base.sha256 else "") for base in wanted)
    raise BaseMismatchError(
        f"{manifest.name} has adapters for {names}; the base given is {bundle.config.name} with weights "
        f"{bundle.config.source_sha256[:12]}…"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower())
