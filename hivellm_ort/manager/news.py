"""What a manager tells of its experts and bases, in the order in which it happened."""

from __future__ import annotations

import contextlib
import threading
from collections import deque

from hivellm_ort.observability import Event, Events

__all__ = ["News"]


class News:
    """Events that happen under a lock, and are told when it has been let go of. Safe to use from any thread.

    Args:
        events: who is told.
    """

    def __init__(self, events: Events):
        self._events = events
        self._untold: deque[Event] = deque()
        self._telling = threading.Lock()

    def add(self, event: Event) -> None:
        """Have an event told by the next `tell`."""
        self._untold.append(event)

    def tell(self) -> None:
        """Tell what was added, unless another thread, or a caller of this, does so already."""
        while self._untold and self._telling.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    while True:
                        self._events.emit(self._untold.popleft())
            finally:
                self._telling.release()
