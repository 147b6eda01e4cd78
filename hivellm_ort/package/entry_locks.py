"""What of the store is being read stays: a load holds what it has found, and what removes things passes over it.

A hold is an open file of the package, base or prepared adapter, with a shared lock; to remove one takes the exclusive
lock. The system lets go of both when a process ends, however it ends. On Windows an open file alone keeps its folder
from being renamed, and to rename it is how things are removed.

A file system without such locks leaves things as they would be without holds.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hivellm_ort.contract import DECODER_JSON

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

__all__ = ["INDEX", "exclusive_lock", "shared_lock"]

INDEX = "index.json"
"""File of an unpacked package that says what is in it."""

_LOG = logging.getLogger("hivellm_ort")
_POLL_SECONDS = 0.02
# Without O_NONBLOCK to open a named pipe is to wait for its writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}  # what file systems say of a lock that somebody has


@contextlib.contextmanager
def shared_lock(entry: Path) -> Iterator[None]:
    """Keep a package, base or prepared adapter of the store from being removed; does nothing where it is missing.

    Whether it is whole is to be seen afterwards.

    Args:
        entry: Its folder, or the file of an adapter.
    """
    number = _open(entry, os.O_RDONLY)
    try:
        while number is not None:
            _lock(number, exclusive=False)
            if _is_still(number, entry):
                break
            _close(number)  # it was removed before it was locked; another one may have its name by now
            number = None
            number = _open(entry, os.O_RDONLY)
        yield
    finally:
        if number is not None:
            _close(number)


@contextlib.contextmanager
def exclusive_lock(entry: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Whether nobody holds a package, base or prepared adapter; nobody can begin to until the block ends.

    On Windows it is always true, and renaming what is held fails.

    Args:
        entry: Its folder, or the file of an adapter.
        seconds: How long to wait until it is so.
    """
    if fcntl is None:  # an open file would be in the way of the renaming
        yield True
        return
    # NFS gives an exclusive lock only on a file that is open to write.
    number = _open(entry, os.O_RDWR)
    if number is None:
        number = _open(entry, os.O_RDONLY)
    if number is None:
        yield True
        return
    try:
        end = time.monotonic() + seconds
        while not (free := _lock(number, exclusive=True)) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        yield free
    finally:
        _close(number)


def _marker(entry: Path) -> Path:
    """The file that stands for an entry."""
    return next((entry / name for name in (INDEX, DECODER_JSON) if (entry / name).exists()), entry)


def _open(entry: Path, mode: int) -> int | None:
    with contextlib.suppress(OSError):
        number = os.open(_marker(entry), mode | _FLAGS)
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
        os.close(number)
    return None


def _lock(number: int, *, exclusive: bool) -> bool:
    """Lock an open file; False where somebody else has it, who is waited for with a shared lock only."""
    if fcntl is None:
        return True
    # Who removes something has the exclusive lock for one renaming.
    how = fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(number, how)
    except OSError as error:
        if exclusive and error.errno in _BUSY:
            return False
        _warn(str(error.strerror))
    return True


@functools.cache  # once in a process
def _warn(reason: str) -> None:
    _LOG.warning(
        "the cache's file system has no locks (%s): do not clear or prune it while something loads from it",
        reason,
    )


def _is_still(number: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), _marker(entry).stat())
    except OSError:
        return False


def _close(number: int) -> None:
    if fcntl is not None:
        # A process that was forked meanwhile has the file open too, and would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
    os.close(number)
