"""The layout of the store's folders, and how files get their final names.

::

    <root>/blobs/<sha256>                    every stored file once; the folders below have hard links to them
           packages/<sha256>/index.json      the index of a package, beside files/ with its members
           bases/<sha256 of decoder.json>/   a base bundle
           adapters/<key>.safetensors        a prepared adapter, and <key>.json with its size and digest
           records/                          digests of package files, and results of checks
           downloads/                        files that the exporter downloaded
           models/, trusted_keys.json        the user's own files; never removed
           tmp/                              unfinished work of the process that holds .lock
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hivellm_ort.errors import LoadError
from hivellm_ort.package.entry_locks import exclusive_lock

__all__ = [
    "HELD_SECONDS",
    "Layout",
    "commit_folder",
    "default_root",
    "discard",
    "note_use",
    "sync_folder",
    "write_file",
]

HELD_SECONDS = 10.0
"""How long to wait until another process has stopped reading a damaged folder."""

_WINDOWS = os.name == "nt"


def default_root() -> Path:
    """Return the user's cache folder for packages. `HIVELLM_HOME` overrides it.

    Raises:
        LoadError: The user has no home folder.
    """
    import platformdirs

    try:
        if home := os.environ.get("HIVELLM_HOME"):
            if any(
                "\ud800" <= char <= "\udfff" for char in home
            ):  # bytes that are not of the system's encoding
                raise LoadError(
                    f"HIVELLM_HOME = {home!a} is not valid Unicode, and ONNX Runtime cannot read it: set another path"
                )
            return Path(home).expanduser()
        cache = platformdirs.user_cache_path("hivellm-ort", appauthor=False)
        if cache.is_absolute():  # an older platformdirs returns "~" if there is no home folder
            return cache
    except RuntimeError:
        pass
    raise LoadError("no home folder to cache packages in; set HIVELLM_HOME to a folder")


class Layout:
    """The folders of one store.

    Args:
        root: The store's folder.

    Attributes:
        root: The store's folder.
        blobs: Every stored file, by digest.
        packages: Unpacked packages.
        bases: Base bundles.
        adapters: Prepared adapters.
        records: Digests of package files, and results of checks.
        downloads: Files that the exporter downloaded.
        models: The user's own bundles.
        scratch: Unfinished work.
        managed: All folders except `models`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.packages = root / "packages"
        self.bases = root / "bases"
        self.adapters = root / "adapters"
        self.records = root / "records"
        self.downloads = root / "downloads"
        self.models = root / "models"
        self.scratch = root / "tmp"
        self.managed = (
            self.packages, self.bases, self.adapters, self.blobs, self.records, self.downloads, self.scratch
        )  # fmt: skip

    @contextlib.contextmanager
    def workspace(self, *, seconds: float = -1) -> Iterator[Path]:
        """Hold the store's lock and yield a new work folder in the store. The folder is removed afterwards.

        Args:
            seconds: How long to wait for the lock. Default: without limit.

        Raises:
            LoadError: Another process holds the lock for longer.
            OSError: The store cannot be written.
            NotImplementedError: Its file system has no locks.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(seconds):
            # All work is done under the lock, so these files are from a process that died.
            shutil.rmtree(self.scratch, ignore_errors=True)
            work = self.scratch / secrets.token_hex(8)
            work.mkdir(parents=True)
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, seconds: float) -> Iterator[None]:
        lock = FileLock(self.root / ".lock", timeout=seconds)
        try:
            lock.acquire()
        except Timeout as error:
            raise LoadError(
                f"{self.root}: another process has been unpacking or pruning for {seconds:g} seconds: try again "
                "when it has ended"
            ) from error
        try:
            yield
        finally:
            lock.release()


def commit_folder(folder: Path, final: Path, work: Path) -> None:
    """Give a complete folder its final name. A damaged folder of this name is moved to the work folder.

    Raises:
        LoadError: Another process reads the damaged folder for longer than `HELD_SECONDS`.
        OSError: A folder cannot be moved, for example one with open files on Windows.
    """
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))
    final.parent.mkdir(exist_ok=True)
    with exclusive_lock(final, seconds=HELD_SECONDS) as free:
        if not free:
            raise LoadError(
                f"{final}: it is damaged, and another process is loading it now: load again later"
            )
        if final.exists():
            final.rename(work / secrets.token_hex(8))
        _patiently(lambda: folder.rename(final))
    sync_folder(final.parent)


def discard(path: Path, work: Path) -> bool:
    """Remove a file or folder in one step, by moving it to the work folder.

    Returns:
        Whether it is removed; False if it is locked, or open on Windows.
    """
    try:
        with exclusive_lock(path) as free:
            if free:
                path.rename(work / secrets.token_hex(8))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return free


def write_file(path: Path, data: bytes, work: Path) -> None:
    """Write a file. It gets its name only when it is complete and on the disk.

    Args:
        path: The file to write or replace.
        data: Its content.
        work: A folder on the same file system, for the unfinished file.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = work / f".{secrets.token_hex(8)}.tmp"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _patiently(lambda: unfinished.replace(path))
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a power cut does not lose them. Windows has no such call."""
    if _WINDOWS:
        return
    # Some file systems cannot sync folders.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def note_use(path: Path) -> None:
    """Set the time of a file or folder to now. A store that cannot be written stays unchanged."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _patiently(rename: Callable[[], object]) -> None:
    """Rename a new file or folder. On Windows it is retried, because a virus scanner may have the file open."""
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8) if _WINDOWS else ():
        try:
            rename()
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    rename()
