"""Work that must not be done by the thread that finds it."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Workers"]


class Workers:
    """Threads that do one thing each.

    Args:
        changed: told when one has ended; its lock is held by whoever calls.
    """

    def __init__(self, changed: threading.Condition):
        self._changed = changed
        self._threads: set[threading.Thread] = set()

    def do(self, work: Callable[[], None]) -> None:
        """Do it in another thread."""

        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._threads.discard(thread)
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name="hivellm_ort manager")
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, and with it what there was to do
            self._threads.discard(thread)

    @property
    def idle(self) -> bool:
        """Whether there is none, or this is one of them, which cannot wait for itself."""
        return not self._threads or threading.current_thread() in self._threads
