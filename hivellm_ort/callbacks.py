"""Functions of the application that are called in the middle of ours: what they raise concerns nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hivellm_ort.errors import InferenceError

__all__ = ["as_exception", "is_interrupt", "raised_by"]


def raised_by(function: Callable[..., object], *arguments: Any) -> BaseException | None:
    """Call a function; what it raised, of whatever kind, or None."""
    try:
        function(*arguments)
    except BaseException as error:
        return error
    return None


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error is to end more than the function that raised it.

    In the main thread Ctrl-C, and an exit that a signal handler asks for, come up in whatever function runs. In other
    threads they never do: there the function itself has raised it.
    """
    return not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()


def as_exception(error: BaseException, what: str) -> Exception:
    """Return an error in the form in which it can be given to whoever waits in another thread.

    Args:
        error: What was raised.
        what: What raised it, for the message.

    Returns:
        The error itself. In place of one that would end the thread that waits (`SystemExit`), or its loop
        (`StopIteration`) or task (`CancelledError`), an InferenceError whose `__cause__` it is.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    told = InferenceError(
        f"{what} raised {type(error).__name__}: this request ended, and no other. Raise an ordinary exception there"
    )
    told.__cause__ = error
    return told
