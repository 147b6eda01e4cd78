"""The cache of unpacked packages, where equal base bundles exist once.

::

    <root>/packages/<sha256 of the package>/index.json      what is in it, written last
                                            files/          manifest.json and the other members
    <root>/bases/<sha256 of decoder.json>/                  a base bundle
    <root>/tmp/                                             work in progress

A folder gets its final name in one step and only when complete, so a killed process leaves nothing but work
in progress, which later runs sweep.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import (
    DEFAULT_LIMITS,
    ArchiveContents,
    Limits,
    Member,
    Progress,
    extract,
    sha256_file,
)
from hivellm_ort.package.bundle import FOLDER, bundle_members, check_bundle, is_intact
from hivellm_ort.package.folders import default_root, has_size, place, sweep
from hivellm_ort.package.index import PackageIndex
from hivellm_ort.package.manifest import MANIFEST

__all__ = ["Store", "UnpackedPackage", "default_root", "open_package"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


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


class Store:
    """Unpacked packages and their shared bases, in one folder that several processes may use at once.

    Args:
        root: The folder, made when first needed; `default_root()` by default.

    Raises:
        LoadError: There is neither a root nor a home folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (default_root() if root is None else root).absolute()

    def unpack(
        self, package: Path, *, limits: Limits = DEFAULT_LIMITS, progress: Progress | None = None
    ) -> UnpackedPackage:
        """Unpack a package file, or find it unpacked.

        Args:
            package: The `.expert` file.
            limits: What the archive may unpack to.
            progress: Called with the number of compressed bytes just unpacked; not at all when nothing is.

        Raises:
            IntegrityError: The archive is damaged or unsafe, or its base differs from its `decoder.json`.
            ManifestError: It has no `manifest.json`, or its `decoder.json` is malformed.
            LoadError: The package cannot be read or the store not written.
        """
        try:
            digest = sha256_file(package)
        except OSError as error:
            raise LoadError(f"{package}: cannot be read: {error.strerror}; check the path") from error
        try:
            if found := self._lookup(digest):
                return found
            with self._locked():
                # Another process may have unpacked it while this one waited.
                return self._lookup(digest) or self._add(package, digest, limits, progress)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise LoadError(
                f"{package}: cannot be stored: {getattr(error, 'strerror', None) or error}; "
                "check the free space, or set HIVELLM_HOME to a folder that can be written"
            ) from error

    def find_bundle(self, digest: str) -> Path | None:
        """The folder of a base bundle that is here and complete.

        Args:
            digest: Hex SHA-256 of the bundle's `decoder.json`.
        """
        # The digest may come from a package: it must not lead to another folder.
        if not _DIGEST.match(digest):
            return None
        folder = self._bases / digest
        return folder if is_intact(folder) else None

    def bundles(self) -> list[Path]:
        """The folders of all complete base bundles here, sorted by digest."""
        try:
            names = sorted(entry.name for entry in self._bases.iterdir())
        except OSError:
            return []
        return [folder for name in names if (folder := self.find_bundle(name)) is not None]

    @property
    def _bases(self) -> Path:
        return self.root / "bases"

    def _package(self, digest: str) -> Path:
        return self.root / "packages" / digest

    def _lookup(self, digest: str) -> UnpackedPackage | None:
        """The package if it is unpacked and every file still has its size."""
        folder = self._package(digest)
        index = PackageIndex.load(folder)
        if index is None:
            return None
        if index.bundle is not None and self.find_bundle(index.bundle) is None:
            return None
        elsewhere = {member.name for member in bundle_members(index.contents.members).values()}
        kept = (member for member in index.contents.members if member.name not in elsewhere)
        if not all(has_size(folder / "files" / member.name, member.size) for member in kept):
            return None
        return self._unpacked(index)

    def _add(self, package: Path, digest: str, limits: Limits, progress: Progress | None) -> UnpackedPackage:
        with self._workspace() as work:
            folder = work / "package"
            contents = extract(package, folder / "files", limits=limits, progress=progress)
            if contents.sha256 != digest:
                raise IntegrityError(f"{package}: changed while it was read; load it again")
            if not any(member.name == MANIFEST for member in contents.members):
                raise ManifestError(f"{package}: {MANIFEST} is missing at the top of the archive; add it")
            try:
                bundle = self._move_bundle(folder / "files" / FOLDER, work, contents)
            except (IntegrityError, ManifestError) as error:
                raise type(error)(f"{package}: {error}") from error
            index = PackageIndex(contents, bundle)
            index.save(folder)
            place(folder, self._package(digest), work)
            return self._unpacked(index)

    def _move_bundle(self, onnx: Path, work: Path, contents: ArchiveContents) -> str | None:
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
        if self.find_bundle(digest) is None:
            place(base, self._bases / digest, work)
        return digest

    def _unpacked(self, index: PackageIndex) -> UnpackedPackage:
        contents = index.contents
        root = self._package(contents.sha256) / "files"
        adapter = f"{FOLDER}/{ADAPTER_FILE}"
        return UnpackedPackage(
            root=root,
            sha256=contents.sha256,
            adapter=root / adapter if any(member.name == adapter for member in contents.members) else None,
            bundle=None if index.bundle is None else self._bases / index.bundle,
            members=contents.members,
            skipped=contents.skipped,
            notes=contents.notes,
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            yield

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A fresh folder on the store's file system, removed afterwards."""
        scratch = self.root / "tmp"
        scratch.mkdir(exist_ok=True)
        sweep(scratch)
        work = scratch / secrets.token_hex(8)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def open_package(
    path: Path, store: Store, *, limits: Limits = DEFAULT_LIMITS, progress: Progress | None = None
) -> UnpackedPackage:
    """Open a package: a `.expert` file through the store, or a folder of its members in place.

    Args:
        path: The file or folder.
        store: Where files are unpacked.
        limits: What an archive may unpack to.
        progress: Called with the number of compressed bytes just unpacked.

    Raises:
        IntegrityError: As `Store.unpack`.
        ManifestError: There is no `manifest.json`, or as `Store.unpack`.
        LoadError: The path is neither a file nor a folder, or as `Store.unpack`.
    """
    if path.is_file():
        return store.unpack(path, limits=limits, progress=progress)
    if not path.is_dir():
        raise LoadError(f"{path}: neither a .expert file nor a folder; check the path")
    if not (path / MANIFEST).is_file():
        raise ManifestError(f"{path}: the folder has no {MANIFEST}; name a folder with an unpacked package")
    onnx = path / FOLDER
    return UnpackedPackage(
        root=path,
        sha256="",
        adapter=onnx / ADAPTER_FILE if (onnx / ADAPTER_FILE).is_file() else None,
        bundle=onnx if (onnx / DECODER_JSON).is_file() else None,
        members=(),
        skipped=(),
        notes=(),
    )
