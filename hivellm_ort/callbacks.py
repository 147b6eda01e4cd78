"""Calls functions of the application, so that their errors affect only the request that called them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hivellm_ort.errors import InferenceError

__all__ = ["as_exception", "is_interrupt", "raised_by"]


def raised_by(function: Callable[..., object], *arguments: Any) -> BaseException | None:
    """Call a function and return what it raised, or None."""
    try:
        function(*arguments)
    except BaseException as error:
        return error
    return None


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error must reach the caller's program, such as Ctrl-C.

    In the main thread, Ctrl-C and an exit from a signal handler are raised in any function that happens to run. In
    other threads they never are: there the function itself raised them.
    """
    return not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()


def as_exception(error: BaseException, what: str) -> Exception:
    """Return an error that may be raised in the thread that waits for a result.

    Args:
        error: What was raised.
        what: What raised it, for the message.

    Returns:
        The error itself. Errors that would end the waiting thread (`SystemExit`), its loop (`StopIteration`) or its
        task (`CancelledError`) become the `__cause__` of an InferenceError.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    told = InferenceError(
        f"{what} raised {type(error).__name__}: this request ended, and no other. Raise an ordinary exception there"
    )
    told.__cause__ = error
    return told
