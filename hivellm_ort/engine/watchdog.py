"""End a run of a session that nobody waits for any more, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hivellm_ort.errors import InterruptedRunError

__all__ = ["END_SECONDS", "Watchdog"]

END_SECONDS = 0.25
"""A run ends at the latest so many seconds after it became unwanted, and after the operator that runs then."""

_SHORT = 0.15  # seconds that a run is left alone: it ends by itself sooner than it could be repeated
_TICK = 0.05
_QUIET = 1.0  # seconds without a run until the thread sleeps: to wake it for every token would cost more


def _wanted() -> bool:
    return False


class Watchdog:
    """Watches the runs of one thread, which are one at a time.

    Its own thread starts with the first run. It looks every 50 ms while there are runs, and sleeps while there are
    none. A run that has begun less than 0.15 s ago is left alone.

    Args:
        unwanted: whether the run is to end; asked by the watchdog's thread about a run that lasts longer than that,
            and never again about a run that has ended. It must not wait.
    """

    def __init__(self, unwanted: Callable[[], bool]):
        self._unwanted = unwanted
        self._lock = threading.Lock()
        self._options: Any = None  # of the run that goes on
        self._begin = 0.0
        self._ended = False  # whether the run that goes on is one that was ended
        self._news = threading.Event()
        self._awake = self._closed = False
        self._thread: threading.Thread | None = None

    def run(self, session: Any, binding: Any, options: Any) -> None:
        """Run what is bound.

        Args:
            session: of ONNX Runtime.
            binding: an IOBinding of it.
            options: RunOptions, which may be those of an earlier run of this thread.

        Raises:
            InterruptedRunError: the run was ended.
            Exception: what ONNX Runtime raises otherwise.
        """
        self._begin = (
            time.monotonic()
        )  # before the options, by which the other thread sees that there is a run
        self._options = options
        if not self._awake:
            self._wake()
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:
            if self._ended:
                raise InterruptedRunError("a run was ended, for nobody waits for it any more") from error
            raise
        finally:
            # Under the lock, so that the end is never meant for the next run.
            with self._lock:
                self._options = None
            if self._ended:
                options.terminate = self._ended = False

    def require_wanted(self) -> None:
        """Refuse to go on between two runs that belong together.

        Raises:
            InterruptedRunError: their result is not wanted any more.
        """
        if self._asked():
            raise InterruptedRunError("the next run is not wanted any more")

    def close(self) -> None:
        """End the thread; there are no more runs."""
        self._closed = True
        self._unwanted = _wanted  # what was asked may hold a whole base
        self._news.set()

    def _wake(self) -> None:
        self._awake = True
        self._news.set()
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="hivellm_ort watchdog", daemon=True)
            thread.start()
            self._thread = thread

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(_TICK)
            if self._options is not None and time.monotonic() - self._begin > _SHORT:
                self._look()
            elif self._options is None and time.monotonic() - self._begin > _QUIET:
                self._sleep()

    def _look(self) -> None:
        begin = self._begin
        if not self._asked():
            return
        with self._lock:
            # Another run may have begun meanwhile. Its time is set before its options.
            if self._options is not None and self._begin == begin:
                self._ended = True
                self._options.terminate = True

    def _sleep(self) -> None:
        self._news.clear()
        self._awake = False
        # A run that began before this line may have found the thread awake.
        if self._options is None and not self._closed:
            self._news.wait()
        self._awake = True

    def _asked(self) -> bool:
        try:
            return self._unwanted()
        except BaseException:  # whoever runs asks again, and is told
            return True
