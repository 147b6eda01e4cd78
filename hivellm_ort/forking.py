"""Guards against use in forked processes, which have neither threads nor sessions of their parent."""

from __future__ import annotations

import os
from collections.abc import Callable

from hivellm_ort.errors import InferenceError

__all__ = ["Home", "in_child"]


class Home:
    """The process that created an object.

    Args:
        what: Description of the object, for the message.
    """

    def __init__(self, what: str):
        self._what = what
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is still that process and not a fork."""
        return self._process == os.getpid()

    def require(self) -> None:
        """Raise an error in a forked process, where waiting would never end.

        Raises:
            InferenceError: This process was forked.
        """
        if not self.here:
            raise InferenceError(
                f"{self._what} belongs to the process {self._process}. This process was forked from it, without "
                "its threads and sessions. Load after the fork (gunicorn: without preload_app, or in post_fork), "
                "or start processes with the method 'spawn'"
            )


def in_child(reset: Callable[[], object]) -> None:
    """Call a function in every process that is forked from this one. Does nothing on systems without fork.

    Use it to replace locks that another thread may have held during the fork. They would never be released.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)
