"""Locks on entries of the store, so that no process removes an entry that another process reads.

A reader holds a shared lock on an open file of the package, base or prepared adapter. Removing an entry needs the
exclusive lock. The system releases both when a process ends. On Windows an open file is enough: its folder cannot be
renamed, and an entry is removed by renaming it.

On a file system without such locks, entries are not protected.
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
"""The index file of an unpacked package."""

_LOG = logging.getLogger("hivellm_ort")
_POLL_SECONDS = 0.02
# Without O_NONBLOCK, opening a named pipe waits for its writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}  # errors for a lock that another process holds


@contextlib.contextmanager
def shared_lock(entry: Path) -> Iterator[None]:
    """Protect a package, base or prepared adapter from removal while the block runs. A missing one is ignored.

    Check the entry only after this call, because it may have been removed before.

    Args:
        entry: Its folder, or the file of an adapter.
    """
    number = _open(entry, os.O_RDONLY)
    try:
        while number is not None:
            _lock(number, exclusive=False)
            if _is_still(number, entry):
                break
            _close(number)  # the entry was removed before it was locked; a new one may have its name
            number = None
            number = _open(entry, os.O_RDONLY)
        yield
    finally:
        if number is not None:
            _close(number)


@contextlib.contextmanager
def exclusive_lock(entry: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Try to lock a package, base or prepared adapter for removal. Yields whether it is locked.

    On Windows the result is always true, and renaming an entry that is being read fails.

    Args:
        entry: Its folder, or the file of an adapter.
        seconds: How long to wait for the lock.
    """
    if fcntl is None:  # an open file would prevent the renaming
        yield True
        return
    # NFS grants an exclusive lock only on a file that is open for writing.
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
    """Return the file to lock for an entry."""
    return next((entry / name for name in (INDEX, DECODER_JSON) if (entry / name).exists()), entry)


def _open(entry: Path, mode: int) -> int | None:
    with contextlib.suppress(OSError):
        number = os.open(_marker(entry), mode | _FLAGS)
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
        os.close(number)
    return None


def _lock(number: int, *, exclusive: bool) -> bool:
    """Lock an open file, and return whether it is locked. Only a shared lock waits for other processes."""
    if fcntl is None:
        return True
    # An exclusive lock is held for one renaming only, so a shared lock does not wait long.
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
        "the cache's file system has no locks (%s): do not clear or prune it while a process loads from it",
        reason,
    )


def _is_still(number: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), _marker(entry).stat())
    except OSError:
        return False


def _close(number: int) -> None:
    if fcntl is not None:
        # A forked process has the file open too, and would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
    os.close(number)
