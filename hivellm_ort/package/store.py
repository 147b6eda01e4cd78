"""The cache of unpacked packages, where equal files exist once; `folders` says how it is laid out.

A folder gets its final name in one step and only when complete, and so does a file, so that a killed process leaves
nothing but work in progress, which the next one sweeps.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import LoadError, ManifestError
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits, Progress, sha256_file
from hivellm_ort.package.blobs import copy_file
from hivellm_ort.package.bundle_folders import (
    ONNX_FOLDER,
    bundle_folders,
    check_folders,
    find_bundle_fault,
    find_bundle_files,
)
from hivellm_ort.package.entries import StoreEntry, StoreListing, list_store
from hivellm_ort.package.entry_locks import shared_lock
from hivellm_ort.package.filecheck import Check, FileChecker, is_digest
from hivellm_ort.package.folders import Layout, default_root, note_use
from hivellm_ort.package.links import check_folder
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.package.pruning import clear, prune, shrink
from hivellm_ort.package.records import Found, forget, hash_package, recall
from hivellm_ort.package.sizes import parse_size
from hivellm_ort.package.stored_adapters import SUFFIX, find_adapter_fault, write_adapter
from hivellm_ort.package.unpacked import UnpackedPackage, add_bundle, add_package, find_package
from hivellm_ort.paths import StrPath

__all__ = ["Store", "UnpackedPackage", "default_root", "open_package"]


class Store:
    """Unpacked packages, their shared bases and prepared adapters, in one folder for several processes at once.

    What is found in a `with` block stays until the block ends, whatever other processes remove meanwhile; a block is
    for one thread. What is found without one may be gone when it is read.

    Args:
        root: The folder, made when first needed; `default_root()` by default.
        max_bytes: Size that packages, bases and prepared adapters are held to by removing the least recently used
            after one is added; the environment variable `HIVELLM_CACHE_SIZE`, or no limit, by default.

    Attributes:
        root: The folder.
        max_bytes: The size; None for no limit.

    Raises:
        LoadError: There is neither a root nor a home folder, or `HIVELLM_CACHE_SIZE` is no size.
    """

    def __init__(self, root: StrPath | None = None, max_bytes: int | None = None) -> None:
        self.root = Path(default_root() if root is None else root).absolute()
        self.max_bytes = _size_from_environment() if max_bytes is None else max_bytes
        self._layout = Layout(self.root)
        self._holds: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        self._holds = contextlib.ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        holds, self._holds = self._holds, None
        if holds is not None:
            holds.close()

    def unpack(
        self,
        package: StrPath,
        *,
        limits: Limits = DEFAULT_LIMITS,
        check: Check = "size",
        progress: Progress | None = None,
    ) -> UnpackedPackage:
        """Unpack a package file, or find it unpacked and whole.

        Args:
            package: The `.expert` file.
            limits: What the archive may unpack to.
            check: How the package, where it is unpacked, is compared with what was recorded of it: `size` reads
                neither it nor a package file that has not changed; `digest` hashes every file.
            progress: Called with the number of compressed bytes just unpacked; not at all when nothing is.

        Raises:
            IntegrityError: The archive is damaged or unsafe, or a base differs from its `decoder.json`.
            ManifestError: It has no `manifest.json`, or a `decoder.json` is malformed.
            LoadError: The package cannot be read or the store not written.
        """
        package = Path(package)
        try:
            if not stat.S_ISREG(package.stat().st_mode) and not package.is_dir():
                raise LoadError(f"{package}: a named pipe, a device or a socket; name a .expert file")
            digest = hash_package(package, self._layout.records, trusted=check != "digest")
        except OSError as error:
            raise LoadError(f"{package}: cannot be read: {error.strerror}; check the path") from error
        with _written(str(package)):
            found = self._package(digest, check)
            if found is None:
                with self._layout.workspace() as work:
                    # Another process may have unpacked it while this one waited.
                    found = self._package(digest, check)
                    if found is None:
                        found = add_package(self._layout, package, work, limits=limits, progress=progress)
                        self._shrink({found.root.parent, *found.bundles}, work)
                        self._hold(found.root.parent, *found.bundles)
            if found.sha256 != digest:  # the record was wrong, or the file has changed since
                forget(package, self._layout.records)
        self.note_use(found.root.parent)
        for folder in found.bundles:
            self.note_use(folder)
        return found

    def gather_bundle(self, folder: StrPath, package: UnpackedPackage) -> Path:
        """A bundle of a package, with all its files in one folder.

        That is its own folder, but for a package opened in place where targets share files: such a bundle is copied
        here.

        Args:
            folder: One of `package.bundles`.
            package: The package.

        Raises:
            IntegrityError: A file is missing or differs from its list.
            ManifestError: A `decoder.json` is malformed.
            LoadError: The store cannot be written.
        """
        folder = Path(folder)
        if package.sha256:
            return folder
        bundle = find_bundle_files(package.bundles)[package.bundles.index(folder)]
        if bundle.whole:
            return folder
        found = self.find_bundle(sha256_file(folder / DECODER_JSON))
        if found is not None:
            return found
        check_folders(package.bundles, "digest")
        with _written(str(folder)), self._layout.workspace() as work:
            place = self._layout.bases / add_bundle(self._layout, bundle, work, copy_file)
            self._shrink({place}, work)
            self._hold(place)
        self.note_use(place)
        return place

    def find_bundle(self, digest: str, *, check: Check = "size") -> Path | None:
        """The folder of a base bundle that is here and whole; it counts as used now.

        Args:
            digest: Hex SHA-256 of the bundle's `decoder.json`.
            check: How its files are compared with their list.
        """
        folder = self._bundle(digest, check)
        if folder is not None:
            self.note_use(folder)
        return folder

    def bundles(self) -> list[Path]:
        """The folders of all whole base bundles here, sorted by digest."""
        try:
            names = sorted(entry.name for entry in self._layout.bases.iterdir())
        except OSError:
            return []
        return [folder for name in names if (folder := self._bundle(name, "size")) is not None]

    def models(self) -> list[Path]:
        """The folders in `models/`, one or two levels down, that hold a `decoder.json`: the user's own bundles."""
        found = [
            *self._layout.models.glob(f"*/{DECODER_JSON}"),
            *self._layout.models.glob(f"*/*/{DECODER_JSON}"),
        ]
        return sorted(path.parent for path in found)

    def prepare_adapter(self, key: str, make: Callable[[], bytes], *, check: Check = "size") -> Path:
        """A prepared adapter, made if it is not here whole.

        Args:
            key: 64 hex digits that stand for all that the adapter is made from.
            make: Gives the bytes of its safetensors file. It runs without the store's lock, so two processes may
                run it at once.
            check: How a file that is here is compared with what was recorded of it.

        Raises:
            ValueError: The key is no 64 lower-case hex digits.
            LoadError: The store cannot be written.
        """
        if not is_digest(key):
            raise ValueError(f"key {key[:80]!a} is no SHA-256 in lower-case hex")
        path = self._layout.adapters / f"{key}{SUFFIX}"
        if not self._is_prepared(path, check):
            data = make()
            with _written(path.name), self._layout.workspace() as work:
                if not self._is_prepared(path, check):
                    write_adapter(path, data, work)
                    self._shrink({path}, work)
                    self._hold(path)
        self.note_use(path)
        return path

    def recall(self, what: str, content: bytes, find: Callable[[], Found]) -> Found:
        """What a check of some bytes found, remembered by their digest.

        Args:
            what: The check, with everything but the bytes that its result depends on.
            content: What is checked.
            find: The check. What it raises is not remembered.
        """
        return recall(what, content, find, self._layout.records)

    def note_use(self, path: StrPath) -> None:
        """Count a package, base or prepared adapter as used now.

        Args:
            path: Its folder or file in the store.
        """
        note_use(Path(path))

    def listing(self, *, check: Check = "size", progress: Progress | None = None) -> StoreListing:
        """List what is here, with what is damaged.

        Args:
            check: How files are compared with what was recorded of them.
            progress: Called with the number of bytes just hashed.
        """
        return list_store(self._layout, FileChecker(check, progress))

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        unused_days: float | None = None,
        progress: Progress | None = None,
    ) -> list[StoreEntry]:
        """Remove what is damaged or incomplete, and what is not needed; every file is hashed.

        Args:
            max_bytes: Size to hold packages, bases and prepared adapters to; the store's own by default.
            unused_days: Remove also what was last used more days ago.
            progress: Called with the number of bytes just hashed.

        Returns:
            The entries removed.

        Raises:
            LoadError: The store cannot be written.
        """
        size = self.max_bytes if max_bytes is None else max_bytes
        with _written(str(self.root)):
            return prune(self._layout, max_bytes=size, unused_days=unused_days, progress=progress)

    def clear(self) -> int:
        """Remove everything but the user's own bundles and keys, and what is being loaded or, on Windows, is open.

        Returns:
            How many packages, bases and prepared adapters stay.

        Raises:
            LoadError: The store cannot be written, or another process unpacks or prunes for longer than a minute.
        """
        with _written(str(self.root)):
            return clear(self._layout)

    def _package(self, digest: str, check: Check) -> UnpackedPackage | None:
        with contextlib.ExitStack() as holds:
            found = find_package(self._layout, digest, FileChecker(check), holds)
            if found is not None:
                self._keep(holds)
            return found

    def _bundle(self, digest: str, check: Check) -> Path | None:
        # The digest may come from a package: it must not lead to another folder.
        if not is_digest(digest):
            return None
        folder = self._layout.bases / digest
        with contextlib.ExitStack() as holds:
            holds.enter_context(shared_lock(folder))
            if find_bundle_fault(folder, FileChecker(check)) is not None:
                return None
            self._keep(holds)
            return folder

    def _is_prepared(self, path: Path, check: Check) -> bool:
        with contextlib.ExitStack() as holds:
            holds.enter_context(shared_lock(path))
            if find_adapter_fault(path, FileChecker(check)) is not None:
                return False
            self._keep(holds)
            return True

    def _keep(self, holds: contextlib.ExitStack) -> None:
        """Hold what is held there until the store's `with` block ends; without one not any longer."""
        if self._holds is not None:
            self._holds.push(holds.pop_all())

    def _hold(self, *entries: Path) -> None:
        with contextlib.ExitStack() as holds:
            for entry in entries:
                holds.enter_context(shared_lock(entry))
            self._keep(holds)

    def _shrink(self, keep: set[Path], work: Path) -> None:
        if self.max_bytes is not None:
            shrink(self._layout, self.max_bytes, work, keep=keep)


def open_package(
    path: StrPath,
    store: Store,
    *,
    limits: Limits = DEFAULT_LIMITS,
    check: Check = "size",
    progress: Progress | None = None,
) -> UnpackedPackage:
    """Open a package: a `.expert` file through the store, or a folder of its members in place.

    Args:
        path: The file or folder.
        store: Where files are unpacked.
        limits: What an archive may unpack to.
        check: How files are compared with what is recorded of them, in a folder those of its bases; see
            `Store.unpack`.
        progress: Called with the number of compressed bytes just unpacked.

    Raises:
        IntegrityError: A folder holds a link or a device, or a base of it differs from its `decoder.json`, or as
            `Store.unpack`.
        ManifestError: There is no `manifest.json`, or as `Store.unpack`.
        LoadError: The path is neither a file nor a folder, or as `Store.unpack`.
    """
    path = Path(path)
    if path.is_file():
        return store.unpack(path, limits=limits, check=check, progress=progress)
    if not path.is_dir():
        raise LoadError(f"{path}: neither a .expert file nor a folder; check the path")
    check_folder(path)
    if not (path / MANIFEST).is_file():
        raise ManifestError(f"{path}: the folder has no {MANIFEST}; name a folder with an unpacked package")
    onnx = path / ONNX_FOLDER
    bundles = bundle_folders(onnx)
    check_folders(bundles, check)
    return UnpackedPackage(
        root=path,
        sha256="",
        adapter=onnx / ADAPTER_FILE if (onnx / ADAPTER_FILE).is_file() else None,
        bundles=bundles,
        members=(),
        skipped=(),
        notes=(),
    )


def _size_from_environment() -> int | None:
    text = os.environ.get("HIVELLM_CACHE_SIZE")
    try:
        return parse_size(text) if text else None
    except ValueError as error:
        raise LoadError(f"HIVELLM_CACHE_SIZE: {error}") from error


@contextlib.contextmanager
def _written(what: str) -> Iterator[None]:
    """Errors of the file system, and of one without locks, as errors of the store."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise LoadError(
            f"{what}: the store cannot be written: {getattr(error, 'strerror', None) or error}; "
            "check the free space, or set HIVELLM_HOME to a folder that can be written"
        ) from error
