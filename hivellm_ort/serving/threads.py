"""Marks the threads that generate. They must not wait for answers, because they produce them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hivellm_ort.errors import InferenceError

__all__ = ["is_serving", "refuse_to_wait", "serving"]

_HERE = threading.local()


@contextmanager
def serving() -> Iterator[None]:
    """Mark this thread as a generating one while the block runs."""
    before = getattr(_HERE, "serving", None)
    _HERE.serving = os.getpid()
    try:
        yield
    finally:
        _HERE.serving = before


def is_serving() -> bool:
    """Return whether this thread generates answers and must not wait for them."""
    return getattr(_HERE, "serving", None) == os.getpid()  # a forked process has no threads of its parent


def refuse_to_wait() -> None:
    """Raise an error in a thread that would wait for an answer forever.

    Raises:
        InferenceError: This is the thread of a scheduler, or it runs a callback of one.
    """
    if is_serving():
        raise InferenceError(
            "a processor, event hook or listener must not wait for an answer, nor close a manager: hand that to a "
            "thread of your own, and do not wait for it"
        )
