"""Turns panics of Rust libraries into errors of this package.

PyO3 raises a panic as `PanicException`, which is not an `Exception`: `except Exception` does not catch it, and it
ends a thread. The library also writes it to standard error, which cannot be prevented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hivellm_ort.errors import ExpertError
from hivellm_ort.printable import printable

__all__ = ["panics_as"]

_LONGEST = 200


@contextmanager
def panics_as(error: Callable[[str], ExpertError]) -> Iterator[None]:
    """Raise an error of this package in place of a panic.

    Args:
        error: Makes the error from the panic's message.
    """
    try:
        yield
    except BaseException as panic:
        # The type is made when the library is loaded, and every library has its own.
        if type(panic).__name__ != "PanicException":
            raise
        raise error(printable(str(panic), most=_LONGEST)) from panic
