"""The watchdog of a thread's runs, on sessions made for tests."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from hivellm_ort.engine import watchdog as module
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import InterruptedRunError


class Session:
    """Its runs last so many seconds, or until they are told to end, and then fail as those of ONNX Runtime do."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def run_with_iobinding(self, binding: None, options: SimpleNamespace) -> None:
        """See `InferenceSession`."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if options.terminate:
                raise RuntimeError("Exiting due to terminate flag being set to true.")
            time.sleep(0.002)


def options() -> SimpleNamespace:
    """RunOptions as far as they matter."""
    return SimpleNamespace(terminate=False)


def test_a_cancelled_run_is_ended_in_time() -> None:
    """A run that lasts is ended if it is cancelled, and its options serve again."""
    watchdog, shared = Watchdog(lambda: True), options()
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(InterruptedRunError):
            watchdog.run(Session(30), None, shared)
        assert module._GRACE_SECONDS < time.monotonic() - begin < module.END_SECONDS + 1
        assert shared.terminate is False
    watchdog.close()


def test_another_run_is_left_alone() -> None:
    """A run that is not cancelled ends by itself; what it raises is its own."""
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return False

    watchdog = Watchdog(cancelled)
    watchdog.run(Session(module._GRACE_SECONDS + 0.2), None, options())
    assert [] != asked
    with pytest.raises(RuntimeError, match="Exiting"):
        watchdog.run(Session(30), None, SimpleNamespace(terminate=True))
    watchdog.close()


def test_short_runs_are_never_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are short go on though nobody wants them, however many there are in a row."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 30.0)
    watchdog = Watchdog(lambda: True)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        watchdog.run(Session(0.01), None, options())
    watchdog.close()


def test_the_end_of_a_run_is_not_meant_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while the watchdog asks about it is over, and the next one goes on."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.05)
    asked, answer = threading.Event(), threading.Event()

    def cancelled() -> bool:
        asked.set()
        answer.wait()
        return True

    watchdog, shared = Watchdog(cancelled), options()
    watchdog.run(Session(0.25), None, shared)
    assert asked.is_set()
    monkeypatch.setattr(module, "_GRACE_SECONDS", 30.0)
    threading.Timer(0.05, answer.set).start()
    watchdog.run(Session(0.2), None, shared)
    assert shared.terminate is False
    watchdog.close()


def test_who_cannot_say_does_not_want_it() -> None:
    """A function that raises ends the run: whoever runs asks again, and is told."""

    def cancelled() -> bool:
        raise SystemExit("no answer")

    watchdog = Watchdog(cancelled)
    with pytest.raises(InterruptedRunError):
        watchdog.run(Session(30), None, options())
    with pytest.raises(InterruptedRunError):
        watchdog.raise_if_cancelled()
    watchdog.close()


def test_the_thread_sleeps_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread sleeps while there are no runs, wakes for the next one, and ends when it is told to."""
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.1)
    watchdog = Watchdog(lambda: True)
    for _ in range(2):
        watchdog.run(Session(0.01), None, options())
        assert watchdog._awake
        deadline = time.monotonic() + 5
        while watchdog._awake and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not watchdog._awake
    with pytest.raises(InterruptedRunError):
        watchdog.run(Session(30), None, options())
    thread = watchdog._thread
    assert thread is not None
    watchdog.close()
    thread.join(5)
    assert not thread.is_alive()
