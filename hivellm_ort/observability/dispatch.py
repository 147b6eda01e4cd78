"""Sends events to listeners."""

from __future__ import annotations

import logging
import threading

from hivellm_ort.callbacks import is_interrupt, raised_by
from hivellm_ort.observability.events import Event, Listener

__all__ = ["Events"]

_LOG = logging.getLogger("hivellm_ort")


class _Hook:
    """A listener, and whether its failure was logged."""

    __slots__ = ("failed", "listener")

    def __init__(self, listener: Listener):
        self.listener = listener
        self.failed = False


class Events:
    """Sends events to listeners. Every method may be called from any thread.

    Args:
        listeners: The initial listeners.
    """

    def __init__(self, *listeners: Listener):
        # Replaced as a whole, never changed: emit needs no lock.
        self._hooks: tuple[_Hook, ...] = ()
        # Reentrant: while it is held, the garbage collector may close a stream, which causes an event.
        self._lock = threading.RLock()
        for listener in listeners:
            self.add(listener)

    def add(self, listener: Listener) -> Listener:
        """Add a listener. It gets every event from now on, after the listeners that were added before.

        Returns:
            The listener, so that this can decorate a function. A listener is never added twice.
        """
        with self._lock:
            if all(hook.listener != listener for hook in self._hooks):
                self._hooks = (*self._hooks, _Hook(listener))
        return listener

    def remove(self, listener: Listener) -> None:
        """Remove a listener, if present. A running call of it goes on."""
        with self._lock:
            self._hooks = tuple(hook for hook in self._hooks if hook.listener != listener)

    def emit(self, event: Event) -> None:
        """Call every listener with `event`, in this thread.

        The first error of each listener is logged with its traceback. The listener and the others still get later
        events. Ctrl-C in the main thread is raised again after all listeners were called.
        """
        interrupt = None
        for hook in self._hooks:
            error = raised_by(hook.listener, event)
            if error is None:
                continue
            if is_interrupt(error):
                interrupt = error
            else:
                self._report(hook, event, error)
        if interrupt is not None:
            raise interrupt

    def _report(self, hook: _Hook, event: Event, error: BaseException) -> None:
        with self._lock:
            if hook.failed:
                return
            hook.failed = True
        _LOG.error(
            "the event hook %r raised on %s; the generation goes on, and further errors of this hook are not logged",
            hook.listener,
            type(event).__name__,
            exc_info=error,
        )
