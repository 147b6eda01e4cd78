"""Bars on a terminal that say how far something is."""

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
    """A bar on standard error, shown after a second and gone at the end; nothing where that is no terminal.

    Args:
        what: The words before the bar.
        total: How much there is to do; None where that is unknown.
        unit: What is counted; default: bytes.

    Yields:
        A function to call with how much was just done.
    """
    if not _on_terminal():
        yield _ignored
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=printable(what), unit=unit, unit_scale=True, delay=1, leave=False) as bar:
        yield bar.update


def _ignored(_: int) -> None:
    """What nobody sees."""


def _on_terminal() -> bool:
    """Return whether standard error is there and is a terminal."""
    isatty = getattr(sys.stderr, "isatty", None)
    try:
        return isatty is not None and bool(isatty())
    except ValueError:  # it was closed
        return False


def _reset_lock() -> None:
    """Replace the lock of tqdm, which a thread may have held that draws a bar, and that is not in this process.

    One that the application gave it stays: it is one for several processes.
    """
    if "tqdm" in sys.modules:
        from tqdm.std import TqdmDefaultWriteLock, tqdm

        if isinstance(getattr(tqdm, "_lock", None), TqdmDefaultWriteLock):
            tqdm.set_lock(threading.RLock())


in_child(_reset_lock)
