"""Unpacking a package into the store, and finding it unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import ArchiveContents, Limits, Member, Progress, extract, sha256_file
from hivellm_ort.package.blobs import share
from hivellm_ort.package.bundle import FOLDER, bundle_members, check_bundle, stored_fault
from hivellm_ort.package.filecheck import FileChecks
from hivellm_ort.package.folders import Layout, place
from hivellm_ort.package.index import FILES, PackageIndex
from hivellm_ort.package.manifest import MANIFEST

__all__ = ["UnpackedPackage", "add_package", "find_package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedPackage:
    """A package as files.

    Attributes:
        root: Folder with `manifest.json` and the members beside it.
        sha256: Hex digest of the package file; empty for a folder opened in place.
        adapter: The prepared adapter; None when the package has none.
        bundle: Folder of the base bundle; None for a thin package.
        members: The package's files, those of the bundle included (`onnx/…`, found under `bundle`); empty for
            a folder opened in place.
        skipped: Files of the archive that were left out, with their digests.
        notes: One sentence for each member that was skipped or came twice.
    """

    root: Path
    sha256: str
    adapter: Path | None
    bundle: Path | None
    members: tuple[Member, ...]
    skipped: tuple[Member, ...]
    notes: tuple[str, ...]

    def digest(self, path: Path) -> str:
        """Hex SHA-256 of a file under `root`: as it was unpacked, or read now in a folder opened in place.

        Raises:
            LoadError: The file cannot be read.
        """
        name = path.relative_to(self.root).as_posix()
        recorded = next((member.sha256 for member in self.members if member.name == name), None)
        try:
            return recorded or sha256_file(path)
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror}; check the package") from error


def find_package(layout: Layout, digest: str, checks: FileChecks) -> UnpackedPackage | None:
    """The package of a digest if it is unpacked and whole."""
    index = PackageIndex.load(layout.packages / digest)
    if index is None or index.fault(layout, checks) is not None:
        return None
    return _unpacked(layout, index)


def add_package(
    layout: Layout, package: Path, work: Path, *, limits: Limits, progress: Progress | None
) -> UnpackedPackage:
    """Unpack a package file into a store; a damaged copy that is there is replaced.

    Args:
        layout: Folders of a store whose lock is held.
        package: The `.expert` file.
        work: The work folder that came with the lock.
        limits: What the archive may unpack to.
        progress: Called with the number of compressed bytes just unpacked.

    Raises:
        IntegrityError: The archive is damaged or unsafe, or its base differs from its `decoder.json`.
        ManifestError: It has no `manifest.json`, or its `decoder.json` is malformed.
        LoadError: The package cannot be read or the files not written.
        OSError: The files cannot be placed.
    """
    folder = work / "package"
    contents = extract(package, folder / FILES, limits=limits, progress=progress)
    if not any(member.name == MANIFEST for member in contents.members):
        raise ManifestError(f"{package}: {MANIFEST} is missing at the top of the archive; add it")
    try:
        bundle = _add_bundle(layout, folder / FILES / FOLDER, work, contents)
    except (IntegrityError, ManifestError) as error:
        raise type(error)(f"{package}: {error}") from error
    index = PackageIndex(contents, bundle)
    for member in index.kept:
        share(folder / FILES / member.name, member.sha256, layout.blobs, work)
    index.save(folder)
    place(folder, layout.packages / contents.sha256, work)
    return _unpacked(layout, index)


def _add_bundle(layout: Layout, onnx: Path, work: Path, contents: ArchiveContents) -> str | None:
    """Move the package's base to where packages share it; returns its digest."""
    own = bundle_members(contents.members)
    if not own:
        return None
    check_bundle(onnx, contents.members)
    digest = own[DECODER_JSON].sha256
    base = work / "base"
    onnx.rename(base)
    if (base / ADAPTER_FILE).exists():
        onnx.mkdir()
        (base / ADAPTER_FILE).rename(onnx / ADAPTER_FILE)
    # Hashed, so that unpacking again heals a base that was damaged without changing its size.
    if stored_fault(layout.bases / digest, FileChecks("digest")) is not None:
        for name, member in own.items():
            share(base / name, member.sha256, layout.blobs, work)
        place(base, layout.bases / digest, work)
    return digest


def _unpacked(layout: Layout, index: PackageIndex) -> UnpackedPackage:
    contents = index.contents
    root = layout.packages / contents.sha256 / FILES
    adapter = f"{FOLDER}/{ADAPTER_FILE}"
    return UnpackedPackage(
        root=root,
        sha256=contents.sha256,
        adapter=root / adapter if any(member.name == adapter for member in contents.members) else None,
        bundle=None if index.bundle is None else layout.bases / index.bundle,
        members=contents.members,
        skipped=contents.skipped,
        notes=contents.notes,
    )
