"""Progress bars on a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from hivellm_ort.forking import in_child
from hivellm_ort.printable import printable

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(
    what: str, total: int | None = None, *, unit: str = "B"
) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error after one second, and remove it at the end. Without a terminal show nothing.

    Args:
        what: The text before the bar.
        total: The total amount; None if unknown.
        unit: The unit of the count. Default: bytes.

    Yields:
        A function that takes the amount that was just done.
    """
    if not _on_terminal():
        yield _ignored
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=printable(what), unit=unit, unit_scale=True, delay=1, leave=False) as bar:
        yield bar.update


def _ignored(_: int) -> None:
    """Do nothing."""


def _on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    isatty = getattr(sys.stderr, "isatty", None)
    try:
        return isatty is not None and bool(isatty())
    except ValueError:  # standard error is closed
        return False


def _reset_lock() -> None:
    """Replace the lock of tqdm: a thread of the parent process may have held it during the fork.

    A lock that the application has set stays: it is made for several processes.
    """
    if "tqdm" in sys.modules:
        from tqdm.std import TqdmDefaultWriteLock, tqdm

        if isinstance(getattr(tqdm, "_lock", None), TqdmDefaultWriteLock):
            tqdm.set_lock(threading.RLock())


in_child(_reset_lock)
