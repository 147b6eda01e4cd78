"""What a forked process must not use: threads and sessions stay with the process that started them."""

from __future__ import annotations

import os
from collections.abc import Callable

from hivellm_ort.errors import InferenceError

__all__ = ["Home", "in_child"]


class Home:
    """The process that something was made in.

    Args:
        what: What that is, for the message.
    """

    def __init__(self, what: str):
        self._what = what
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process, and not one that was forked from it."""
        return self._process == os.getpid()

    def require(self) -> None:
        """Refuse to go on where that would wait for threads that are in another process.

        Raises:
            InferenceError: This process was forked.
        """
        if not self.here:
            raise InferenceError(
                f"{self._what} is of the process {self._process}, and this one was forked from it: its threads and "
                "sessions are not here. Load after the fork (gunicorn: without preload_app, or in post_fork), or "
                "start processes with the method 'spawn'"
            )


def in_child(reset: Callable[[], object]) -> None:
    """Have a function called in every process that is forked from this one; does nothing where none can be.

    It is for locks that another thread may have held at that moment, and that nobody would ever let go of.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)
