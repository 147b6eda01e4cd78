"""What must wait until a manager's lock is free, or belongs into another thread: events, and work."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from hivellm_ort.observability import Event, Events

__all__ = ["BackgroundWork", "DeferredEvents"]


class DeferredEvents:
    """Events that happen under a lock. They are emitted in their order when it is free. Any thread may use this.

    Args:
        events: who is told.
    """

    def __init__(self, events: Events):
        self._events = events
        self._deferred: deque[Event] = deque()
        self._emitting = threading.Lock()

    def add(self, event: Event) -> None:
        """Have an event emitted by the next `emit`."""
        self._deferred.append(event)

    def emit(self) -> None:
        """Emit what was added, unless another thread, or a caller of this, does so already."""
        while self._deferred and self._emitting.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    while True:
                        self._events.emit(self._deferred.popleft())
            finally:
                self._emitting.release()


class BackgroundWork:
    """Work that the thread that finds it must not do: each piece gets a thread of its own.

    Args:
        changed: told when one has ended; its lock is held by whoever calls.
    """

    def __init__(self, changed: threading.Condition):
        self._changed = changed
        self._threads: set[threading.Thread] = set()

    def start(self, work: Callable[[], None]) -> None:
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
