"""Ends a run of a session that nobody waits for any more, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hivellm_ort.errors import InterruptedRunError

__all__ = ["END_SECONDS", "Watchdog"]

END_SECONDS = 0.25
"""A run ends at most so many seconds after its cancellation, plus the time of the operator that runs then."""

_GRACE_SECONDS = 0.15  # a run is left alone so long: it ends by itself sooner than it could be repeated
_TICK_SECONDS = 0.05
_QUIET_SECONDS = 1.0  # without a run until the thread sleeps: to wake it for every token would cost more


def _never() -> bool:
    return False


class Watchdog:
    """Watches the runs of one thread, which are one at a time.

    The thread of the watchdog starts with the first run. It looks every 50 ms while there are runs, and sleeps while
    there are none. It leaves a run alone that began less than 0.15 s ago.

    Args:
        cancelled: Whether the current run should end. The thread of the watchdog calls it for a run that lasts longer
            than 0.15 s, and never for a run that has ended. It must not wait.
    """

    def __init__(self, cancelled: Callable[[], bool]):
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._options: Any = None  # of the current run
        self._begin = 0.0
        self._terminated = False  # whether the current run was told to end
        self._wake_up = threading.Event()
        self._awake = self._closed = False
        self._thread: threading.Thread | None = None

    def run(self, session: Any, binding: Any, options: Any) -> None:
        """Run what is bound.

        Args:
            session: An `onnxruntime.InferenceSession`.
            binding: An `onnxruntime.IOBinding` of it.
            options: The `onnxruntime.RunOptions`. They may be those of an earlier run of this thread.

        Raises:
            InterruptedRunError: The run was ended.
            Exception: ONNX Runtime fails otherwise.
        """
        # The time is set before the options: by the options the other thread sees that there is a run.
        self._begin = time.monotonic()
        self._options = options
        if not self._awake:
            self._wake()
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:
            if self._terminated:
                raise InterruptedRunError("a run was ended, for nobody waits for it any more") from error
            raise
        finally:
            # Under the lock, so that the other thread never terminates the next run by mistake.
            with self._lock:
                self._options = None
            if self._terminated:
                options.terminate = self._terminated = False

    def raise_if_cancelled(self) -> None:
        """Check between two runs that belong together whether to go on.

        Raises:
            InterruptedRunError: Nobody waits for their result any more.
        """
        if self._is_cancelled():
            raise InterruptedRunError("the next run is not wanted any more")

    def close(self) -> None:
        """End the thread. There must be no more runs."""
        self._closed = True
        self._cancelled = _never  # the function may hold a whole base
        self._wake_up.set()

    def _wake(self) -> None:
        self._awake = True
        self._wake_up.set()
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="hivellm_ort watchdog", daemon=True)
            thread.start()
            self._thread = thread

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(_TICK_SECONDS)
            if self._options is not None and time.monotonic() - self._begin > _GRACE_SECONDS:
                self._look()
            elif self._options is None and time.monotonic() - self._begin > _QUIET_SECONDS:
                self._sleep()

    def _look(self) -> None:
        begin = self._begin
        if not self._is_cancelled():
            return
        with self._lock:
            # Another run may have begun meanwhile. Its time is set before its options.
            if self._options is not None and self._begin == begin:
                self._terminated = True
                self._options.terminate = True

    def _sleep(self) -> None:
        self._wake_up.clear()
        self._awake = False
        # A run that began before this line may have found the thread awake.
        if self._options is None and not self._closed:
            self._wake_up.wait()
        self._awake = True

    def _is_cancelled(self) -> bool:
        try:
            return self._cancelled()
        except BaseException:  # the caller of the run asks again, and sees the error
            return True
