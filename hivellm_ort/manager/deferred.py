"""Events that wait until a manager's lock is free, and work that runs in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from hivellm_ort.observability import Event, Events

__all__ = ["BackgroundWork", "DeferredEvents"]


class DeferredEvents:
    """Queues events that happen under a lock, and emits them in order when it is free. Thread-safe.

    Args:
        events: Receives the events.
    """

    def __init__(self, events: Events):
        self._events = events
        self._deferred: deque[Event] = deque()
        self._emitting = threading.Lock()

    def add(self, event: Event) -> None:
        """Queue an event for the next `emit`."""
        self._deferred.append(event)

    def emit(self) -> None:
        """Emit the queued events, unless another thread or a caller of this method is emitting them."""
        while self._deferred and self._emitting.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    while True:
                        self._events.emit(self._deferred.popleft())
            finally:
                self._emitting.release()


class BackgroundWork:
    """Runs each piece of work in a thread of its own.

    Args:
        changed: Notified when a piece has ended. Callers of this class hold its lock.
    """

    def __init__(self, changed: threading.Condition):
        self._changed = changed
        self._threads: set[threading.Thread] = set()

    def start(self, work: Callable[[], None]) -> None:
        """Run the work in a new thread."""

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
        except RuntimeError:  # the interpreter is shutting down, so the work is not needed any more
            self._threads.discard(thread)

    @property
    def idle(self) -> bool:
        """Whether no work runs. Also true in a thread that does such work, because it cannot wait for itself."""
        return not self._threads or threading.current_thread() in self._threads
