"""Tells events to the hooks that want them."""

from __future__ import annotations

import logging
import threading

from hivellm_ort.callbacks import is_interrupt, raised_by
from hivellm_ort.observability.events import Event, Listener

__all__ = ["Events"]

_LOG = logging.getLogger("hivellm_ort")


class _Hook:
    """A listener, and whether its failure has been logged."""

    __slots__ = ("failed", "listener")

    def __init__(self, listener: Listener):
        self.listener = listener
        self.failed = False


class Events:
    """Listeners, and the way to tell them what happens. Every method may be called from any thread.

    Args:
        listeners: The first ones.
    """

    def __init__(self, *listeners: Listener):
        # Replaced as a whole, never changed: emit needs no lock.
        self._hooks: tuple[_Hook, ...] = ()
        # Reentrant: the garbage collector may close a stream, and so tell an event, while it is held.
        self._lock = threading.RLock()
        for listener in listeners:
            self.add(listener)

    def add(self, listener: Listener) -> Listener:
        """Tell `listener` every event from now on, after those that were added before.

        Returns:
            The listener, so that this can decorate a function. One that is there already is not added again.
        """
        with self._lock:
            if all(hook.listener != listener for hook in self._hooks):
                self._hooks = (*self._hooks, _Hook(listener))
        return listener

    def remove(self, listener: Listener) -> None:
        """Tell `listener` nothing more; does nothing where it is not there. A call that has begun goes on."""
        with self._lock:
            self._hooks = tuple(hook for hook in self._hooks if hook.listener != listener)

    def emit(self, event: Event) -> None:
        """Tell `event` to every listener, in this thread.

        A listener that raises is logged, the first time with its traceback and then no more; it goes on being told,
        and so do the others. Only in the main thread does what is no Exception, such as Ctrl-C, go on from here, when
        all were told.
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
