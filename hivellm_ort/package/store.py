"""The cache of unpacked packages, in which equal files are stored once; see `folders` for its layout.

A file or folder gets its final name in one step, when it is complete. So a killed process leaves only unfinished
files, and the next process removes them.
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
    """A folder of unpacked packages, their shared bases and prepared adapters. Several processes may use it at once.

    Entries that are found in a `with` block stay until the block ends, even if other processes clear the store.
    Without a block, another process may remove an entry before it is read. A block is for one thread.

    Args:
        root: The folder; it is made when first needed. Default: `default_root()`.
        max_bytes: Most bytes of packages, bases and prepared adapters. After an entry is added, the least recently
            used ones are removed. Default: the environment variable `HIVELLM_CACHE_SIZE`, or no limit.

    Attributes:
        root: The folder.
        max_bytes: The size limit; None for no limit.

    Raises:
        LoadError: There is neither a root nor a home folder, or `HIVELLM_CACHE_SIZE` is not a size.
    """

    def __init__(self, root: StrPath | None = None, max_bytes: int | None = None) -> None:
        self.root = Path(default_root() if root is None else root).absolute()
        self.max_bytes = _size_from_environment() if max_bytes is None else max_bytes
        self._layout = Layout(self.root)
        self._locks: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        self._locks = contextlib.ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        locks, self._locks = self._locks, None
        if locks is not None:
            locks.close()

    def unpack(
        self,
        package: StrPath,
        *,
        limits: Limits = DEFAULT_LIMITS,
        check: Check = "size",
        progress: Progress | None = None,
    ) -> UnpackedPackage:
        """Unpack a package file, unless it is unpacked and undamaged already.

        Args:
            package: The `.expert` file.
            limits: Limits on the unpacked size.
            check: How unpacked files are compared with their records. `size` reads neither them nor a package file
                that has not changed. `digest` hashes every file.
            progress: Called with the number of compressed bytes just unpacked.

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
                    # Another process may have unpacked the package while this one waited.
                    found = self._package(digest, check)
                    if found is None:
                        found = add_package(self._layout, package, work, limits=limits, progress=progress)
                        self._shrink({found.root.parent, *found.bundles}, work)
                        self._lock_entries(found.root.parent, *found.bundles)
            if found.sha256 != digest:  # the record was wrong, or the file was changed meanwhile
                forget(package, self._layout.records)
        self.note_use(found.root.parent)
        for folder in found.bundles:
            self.note_use(folder)
        return found

    def gather_bundle(self, folder: StrPath, package: UnpackedPackage) -> Path:
        """Return a folder with all files of one bundle of a package.

        It is the bundle's own folder. Only if the package was opened in place and its targets share files, the bundle
        is copied into the store.

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
            self._lock_entries(place)
        self.note_use(place)
        return place

    def find_bundle(self, digest: str, *, check: Check = "size") -> Path | None:
        """Return the folder of an undamaged base bundle in the store, or None. The bundle counts as used now.

        Args:
            digest: Hex SHA-256 of the bundle's `decoder.json`.
            check: How its files are compared with their list.
        """
        folder = self._bundle(digest, check)
        if folder is not None:
            self.note_use(folder)
        return folder

    def bundles(self) -> list[Path]:
        """Return the folders of all undamaged base bundles in the store, sorted by digest."""
        try:
            names = sorted(entry.name for entry in self._layout.bases.iterdir())
        except OSError:
            return []
        return [folder for name in names if (folder := self._bundle(name, "size")) is not None]

    def models(self) -> list[Path]:
        """Return the folders of the user's own bundles: those in `models/`, one or two levels deep."""
        found = [
            *self._layout.models.glob(f"*/{DECODER_JSON}"),
            *self._layout.models.glob(f"*/*/{DECODER_JSON}"),
        ]
        return sorted(path.parent for path in found)

    def prepare_adapter(self, key: str, make: Callable[[], bytes], *, check: Check = "size") -> Path:
        """Return the file of a prepared adapter. It is made if the store has no undamaged one.

        Args:
            key: 64 hex digits: the digest of everything from which the adapter is made.
            make: Returns the bytes of its safetensors file. It runs without the store's lock, so two processes may
                run it at once.
            check: How a stored file is compared with its record.

        Raises:
            ValueError: The key is not 64 lower-case hex digits.
            LoadError: The store cannot be written.
        """
        if not is_digest(key):
            raise ValueError(f"key {key[:80]!a} is not a SHA-256 in lower-case hex")
        path = self._layout.adapters / f"{key}{SUFFIX}"
        if not self._is_prepared(path, check):
            data = make()
            with _written(path.name), self._layout.workspace() as work:
                if not self._is_prepared(path, check):
                    write_adapter(path, data, work)
                    self._shrink({path}, work)
                    self._lock_entries(path)
        self.note_use(path)
        return path

    def recall(self, what: str, content: bytes, find: Callable[[], Found]) -> Found:
        """Return the recorded result of a check, or run the check and record its result.

        Args:
            what: Name of the check, with all parameters that its result depends on.
            content: The bytes to check.
            find: Runs the check. Errors are not recorded.
        """
        return recall(what, content, find, self._layout.records)

    def note_use(self, path: StrPath) -> None:
        """Count a package, base or prepared adapter as used now.

        Args:
            path: Its folder or file in the store.
        """
        note_use(Path(path))

    def listing(self, *, check: Check = "size", progress: Progress | None = None) -> StoreListing:
        """List the entries of the store, damaged ones included.

        Args:
            check: How files are compared with their records.
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
        """Remove damaged, incomplete and unused entries. Every file is hashed.

        Args:
            max_bytes: Most bytes of packages, bases and prepared adapters. Default: the limit of the store.
            unused_days: Also remove entries that were not used for so many days.
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
        """Remove all entries except those that are being loaded, or are open on Windows. The user's own files stay.

        Returns:
            How many packages, bases and prepared adapters stay.

        Raises:
            LoadError: The store cannot be written, or another process unpacks or prunes for over a minute.
        """
        with _written(str(self.root)):
            return clear(self._layout)

    def _package(self, digest: str, check: Check) -> UnpackedPackage | None:
        with contextlib.ExitStack() as locks:
            found = find_package(self._layout, digest, FileChecker(check), locks)
            if found is not None:
                self._keep_locks(locks)
            return found

    def _bundle(self, digest: str, check: Check) -> Path | None:
        # The digest may come from a package, so it must not be a path to another folder.
        if not is_digest(digest):
            return None
        folder = self._layout.bases / digest
        with contextlib.ExitStack() as locks:
            locks.enter_context(shared_lock(folder))
            if find_bundle_fault(folder, FileChecker(check)) is not None:
                return None
            self._keep_locks(locks)
            return folder

    def _is_prepared(self, path: Path, check: Check) -> bool:
        with contextlib.ExitStack() as locks:
            locks.enter_context(shared_lock(path))
            if find_adapter_fault(path, FileChecker(check)) is not None:
                return False
            self._keep_locks(locks)
            return True

    def _keep_locks(self, locks: contextlib.ExitStack) -> None:
        """Keep these locks until the store's `with` block ends. Without a block they are released at once."""
        if self._locks is not None:
            self._locks.push(locks.pop_all())

    def _lock_entries(self, *entries: Path) -> None:
        with contextlib.ExitStack() as locks:
            for entry in entries:
                locks.enter_context(shared_lock(entry))
            self._keep_locks(locks)

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
    """Open a package: unpack a `.expert` file into the store, or use a folder of its members in place.

    Args:
        path: The file or folder.
        store: The store for unpacked files.
        limits: Limits on the unpacked size.
        check: How files are compared with their records; see `Store.unpack`. In a folder only the files of bases have
            records.
        progress: Called with the number of compressed bytes just unpacked.

    Raises:
        IntegrityError: A folder contains a link or a device, one of its bases differs from its `decoder.json`, or as
            for `Store.unpack`.
        ManifestError: There is no `manifest.json`, or as for `Store.unpack`.
        LoadError: The path is neither a file nor a folder, or as for `Store.unpack`.
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
    """Turn errors of the file system into a `LoadError`."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise LoadError(
            f"{what}: the store cannot be written: {getattr(error, 'strerror', None) or error}; "
            "check the free space, or set HIVELLM_HOME to a folder that can be written"
        ) from error
