"""Unpacks packages into the store, and finds unpacked packages."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.filenames import shown
from hivellm_ort.package.archive import Limits, Member, Progress, extract, sha256_file
from hivellm_ort.package.blobs import link_file, share_file
from hivellm_ort.package.bundle_folders import ONNX_FOLDER, BundleFiles, check_members, find_bundle_fault
from hivellm_ort.package.entry_locks import shared_lock
from hivellm_ort.package.filecheck import FileChecker
from hivellm_ort.package.folders import Layout, commit_folder, discard
from hivellm_ort.package.index import FILES, PackageIndex
from hivellm_ort.package.manifest import MANIFEST

__all__ = ["UnpackedPackage", "add_bundle", "add_package", "find_package"]


PlaceFile = Callable[[Path, Path], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedPackage:
    """An unpacked package, or a folder opened in place.

    Attributes:
        root: Folder with `manifest.json` and the other members.
        sha256: Hex digest of the package file; empty for a folder opened in place.
        adapter: The prepared adapter; None if the package has none.
        bundles: Folders of the base bundles, one for each target; empty for a thin package. In a package opened in
            place, a file that targets share is in only one of them; see `Store.gather_bundle`.
        members: The package's files, including those of the bundles (`onnx/…`, stored in `bundles`); empty for a
            folder opened in place.
        skipped: Skipped files of the archive, with their digests.
        notes: One sentence for each skipped or repeated member.
    """

    root: Path
    sha256: str
    adapter: Path | None
    bundles: tuple[Path, ...]
    members: tuple[Member, ...]
    skipped: tuple[Member, ...]
    notes: tuple[str, ...]

    def digest(self, path: Path) -> str:
        """Return the hex SHA-256 of a file under `root`: the recorded one, or in a folder opened in place a new one.

        Raises:
            LoadError: The file cannot be read.
        """
        name = path.relative_to(self.root).as_posix()
        recorded = next((member.sha256 for member in self.members if member.name == name), None)
        try:
            return recorded or sha256_file(path)
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror}; check the package") from error


def find_package(
    layout: Layout, digest: str, checks: FileChecker, locks: contextlib.ExitStack
) -> UnpackedPackage | None:
    """Return the package with a digest if it is unpacked and undamaged; else None.

    Args:
        layout: Folders of a store.
        digest: Digest of the package file.
        checks: Compares its files with their records.
        locks: Receives the locks on the package and its bases.
    """
    folder = layout.packages / digest
    locks.enter_context(shared_lock(folder))
    index = PackageIndex.load(folder)
    for bundle in index.bundles if index is not None else ():
        locks.enter_context(shared_lock(layout.bases / bundle))
    if index is None or index.find_fault(layout, checks) is not None:
        return None
    return _unpacked(layout, index)


def add_package(
    layout: Layout, package: Path, work: Path, *, limits: Limits, progress: Progress | None
) -> UnpackedPackage:
    """Unpack a package file into a store. A damaged copy is replaced.

    Args:
        layout: Folders of a store whose lock is held.
        package: The `.expert` file.
        work: The work folder of the lock.
        limits: Limits on the unpacked size.
        progress: Called with the number of compressed bytes just unpacked.

    Raises:
        IntegrityError: The archive is damaged or unsafe, or a base differs from its `decoder.json`.
        ManifestError: It has no `manifest.json`, or a `decoder.json` is malformed.
        LoadError: The package cannot be read, or the files cannot be written.
        OSError: The files cannot be moved to their place.
    """
    folder = work / "package"
    contents = extract(package, folder / FILES, limits=limits, progress=progress)
    if not any(member.name == MANIFEST for member in contents.members):
        raise ManifestError(f"{package}: {_no_manifest(contents.members)}")
    try:
        bundles = check_members(folder / FILES, contents.members, limits)
    except (IntegrityError, ManifestError) as error:
        raise type(error)(f"{package}: {error}") from error
    index = PackageIndex(contents, _add_bundles(layout, bundles, work))
    _remove_bundles(folder / FILES / ONNX_FOLDER, work)
    for member in index.kept:
        share_file(folder / FILES / member.name, member.sha256, layout.blobs, work)
    index.save(folder)
    commit_folder(folder, layout.packages / contents.sha256, work)
    return _unpacked(layout, index)


def _no_manifest(members: tuple[Member, ...]) -> str:
    below = next((m.name.removesuffix(MANIFEST) for m in members if m.name.endswith(f"/{MANIFEST}")), None)
    cure = (
        "add it" if below is None else f"it is in {shown(below)}: pack what is in that folder, not the folder"
    )
    return f"{MANIFEST} is missing at the top of the archive; {cure}"


def add_bundle(layout: Layout, bundle: BundleFiles, work: Path, place_file: PlaceFile) -> str:
    """Add a bundle to the bases that packages share, unless it is there and undamaged.

    Args:
        layout: Folders of a store whose lock is held.
        bundle: Its files, which agree with its `decoder.json`.
        work: The work folder of the lock.
        place_file: Moves, links or copies a file to a new path.

    Returns:
        Its digest.

    Raises:
        OSError: The files cannot be moved to their place.
    """
    digest = sha256_file(bundle.folder / DECODER_JSON)
    # The files are hashed, so that unpacking again repairs a damaged base of the same size.
    if find_bundle_fault(layout.bases / digest, FileChecker("digest")) is None:
        return digest
    base = work / digest
    for name, path in bundle.places.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        place_file(path, base / name)
        share_file(
            base / name, bundle.listed[name].sha256 if name in bundle.listed else digest, layout.blobs, work
        )
    commit_folder(base, layout.bases / digest, work)
    return digest


def _add_bundles(layout: Layout, bundles: list[BundleFiles], work: Path) -> tuple[str, ...]:
    """Add the bundles of an unpacked package to the bases that packages share, and return their digests."""
    owners = Counter(path for bundle in bundles for path in bundle.places.values())

    def place_file(path: Path, target: Path) -> None:
        if owners[path] > 1:
            link_file(path, target)
        else:
            path.rename(target)

    return tuple(add_bundle(layout, bundle, work, place_file) for bundle in bundles)


def _remove_bundles(onnx: Path, work: Path) -> None:
    """Remove everything but the adapter."""
    for path in list(onnx.iterdir()) if onnx.is_dir() else []:
        if path.name != ADAPTER_FILE:
            discard(path, work)
    with contextlib.suppress(OSError):  # it is missing, or the adapter is in it
        onnx.rmdir()


def _unpacked(layout: Layout, index: PackageIndex) -> UnpackedPackage:
    contents = index.contents
    root = layout.packages / contents.sha256 / FILES
    adapter = f"{ONNX_FOLDER}/{ADAPTER_FILE}"
    return UnpackedPackage(
        root=root,
        sha256=contents.sha256,
        adapter=root / adapter if any(member.name == adapter for member in contents.members) else None,
        bundles=tuple(layout.bases / digest for digest in index.bundles),
        members=contents.members,
        skipped=contents.skipped,
        notes=contents.notes,
    )
