"""Events of experts and bases, emitted in the order in which they happened."""

from __future__ import annotations

import contextlib
import threading
from collections import deque

from hivellm_ort.observability import Event, Events

__all__ = ["PendingEvents"]


class PendingEvents:
    """Events that happen under a lock. They are emitted in their order when it is free. Any thread may use this.

    Args:
        events: who is told.
    """

    def __init__(self, events: Events):
        self._events = events
        self._pending: deque[Event] = deque()
        self._emitting = threading.Lock()

    def add(self, event: Event) -> None:
        """Have an event emitted by the next `emit`."""
        self._pending.append(event)

    def emit(self) -> None:
        """Emit what was added, unless another thread, or a caller of this, does so already."""
        while self._pending and self._emitting.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    while True:
                        self._events.emit(self._pending.popleft())
            finally:
                self._emitting.release()
