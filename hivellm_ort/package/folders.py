"""Where the store lives, how its folders are laid out, and how files get their final names.

::

    <root>/blobs/<sha256>                    every stored file once; the folders below hold hard links to them
           packages/<sha256>/index.json      what is in a package, beside files/ with its members
           bases/<sha256 of decoder.json>/   a base bundle
           adapters/<key>.safetensors        a prepared adapter, and <key>.json with its size and digest
           records/                          digests of package files, and what checks of files found
           downloads/                        what the exporter fetched
           models/, trusted_keys.json        the user's own: never removed
           tmp/                              work in progress, of the process that holds .lock
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
"""How long a damaged folder is waited for that another process loads."""

_WINDOWS = os.name == "nt"


def default_root() -> Path:
    """The user's cache folder for packages; `HIVELLM_HOME` overrides it.

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
                    f"HIVELLM_HOME = {home!a} is not valid Unicode, and ONNX Runtime reads no such path: name another"
                )
            return Path(home).expanduser()
        cache = platformdirs.user_cache_path("hivellm-ort", appauthor=False)
        if cache.is_absolute():  # an older platformdirs hands back "~" where there is no home
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
        records: Digests of package files, and what checks of files found.
        downloads: What the exporter fetched.
        models: Bundles that the user put there.
        scratch: Work in progress.
        managed: All folders but `models`, which is the user's.
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
        """Hold the store's lock, with a fresh folder on its file system that is removed afterwards.

        Args:
            seconds: How long to wait for the lock; for ever by default.

        Raises:
            LoadError: Another process has the lock for longer.
            OSError: The store cannot be written.
            NotImplementedError: Its file system has no locks.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(seconds):
            # All work is done under the lock, so what is there now was left by a process that died.
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
    """Give a complete folder its final name; a damaged one that has it goes to the work folder.

    Raises:
        LoadError: Another process reads the damaged one, for longer than `HELD_SECONDS`.
        OSError: A folder cannot be moved, such as one with open files on Windows.
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
    """Move a file or folder to the work folder, so that it is gone at once and whole.

    Returns:
        Whether it is gone; False for one that is held, or on Windows open.
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
    """Write a file that has its name only when it is whole and on the disk.

    Args:
        path: The file to write or replace.
        data: Its content.
        work: Folder of the same file system for the unfinished file.

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
    """Make the names in a folder last through a power cut; Windows has no such call."""
    if _WINDOWS:
        return
    # A file system that cannot sync folders keeps its names in its own way.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def note_use(path: Path) -> None:
    """Set a file's or folder's time to now; a store that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _patiently(rename: Callable[[], object]) -> None:
    """Rename what was just written, which a virus scanner on Windows may hold open for a moment."""
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8) if _WINDOWS else ():
        try:
            rename()
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    rename()
