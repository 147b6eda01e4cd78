"""The requests of one base, answered together by one thread: they share every forward pass."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from hivellm_ort.callbacks import ordinary, raised_by
from hivellm_ort.decoding.loop import Loop, Request, Step
from hivellm_ort.decoding.serving import is_serving, serving
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.session import Engine
from hivellm_ort.engine.watchdog import END_SECONDS, Watchdog
from hivellm_ort.errors import InferenceError
from hivellm_ort.forking import Home

__all__ = ["DEFAULT_ROWS", "OnRest", "OnStep", "Scheduler"]

_LOG = logging.getLogger("hivellm_ort")

DEFAULT_ROWS = 8
"""Most requests that share a forward pass."""

Deliver = Callable[[Step, float], None]
OnStep = Callable[[int, int, float, int], None]
OnRest = Callable[[], None]


@dataclass(eq=False)
class _Job:
    request: Request
    deliver: Deliver
    started: Callable[[], None]


@dataclass(eq=False)
class _Farewell:
    """An adapter that is to be let go of, and who waits for that."""

    adapter: BoundAdapter
    gone: threading.Event = field(default_factory=threading.Event)


class Scheduler:
    """Answers the requests of one graph of a base, first come, first served, as many at once as there are rows.

    Between two steps of the running rows one waiting request begins at most, so that the others go on meanwhile.
    A thread does this from the first request on, and ends with `close`. Safe to use from any thread. It tells of
    every step itself: what is called then may submit and forget, which do not wait in it.

    Args:
        engine: the base.
        adapters: whether its requests have adapters.

    Attributes:
        rows: most requests that share a forward pass.
        home: the process of its thread.
    """

    def __init__(self, engine: Engine, *, adapters: bool):
        self.rows = DEFAULT_ROWS
        self.home = Home("an expert that was loaded before")
        self._engine = engine
        self._adapters = adapters
        self._followers: tuple[tuple[OnStep, OnRest], ...] = ()  # replaced, never changed
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._farewells: list[_Farewell] = []
        self._jobs: dict[int, _Job] = {}
        self._decoder: Decoder | None = None
        self._thread: threading.Thread | None = None
        self._closing = self._ended = False
        self._abandoned = threading.Event()
        self._rested = True

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        decoder = self._decoder
        return decoder.nbytes if decoder is not None else 0

    def submit(self, request: Request, deliver: Deliver, started: Callable[[], None]) -> None:
        """Answer a request as soon as a row is free.

        Args:
            request: fresh.
            deliver: called by the scheduler's thread with every step and the time (of `time.perf_counter`); the last
                step has a finish reason or an error. It must not wait.
            started: called by that thread when the request leaves the queue for a row.

        Raises:
            InferenceError: the scheduler is closed, or of another process.
        """
        self.home.require()
        with self._changed:
            if self._closing:
                raise InferenceError("the base was closed: load the expert again")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="hivellm_ort", daemon=True)
                thread.start()
                self._thread = thread
                _RUNNING.add(self)
            request.cancelled = partial(_either, self._abandoned.is_set, request.cancelled)
            self._waiting.append(_Job(request, deliver, started))
            self._changed.notify()

    def follow(self, on_step: OnStep, on_rest: OnRest) -> Callable[[], None]:
        """Have functions called by the scheduler's thread, which must not raise.

        Args:
            on_step: called after every forward pass: rows in use, rows there may be, seconds, tokens that were
                generated.
            on_rest: called when there is nothing more to do and memory was given back.

        Returns:
            What ends that.
        """
        follower = (on_step, on_rest)

        def stop() -> None:
            with self._changed:
                self._followers = tuple(one for one in self._followers if one is not follower)

        with self._changed:
            self._followers = (*self._followers, follower)
        return stop

    def forget(self, adapter: BoundAdapter) -> None:
        """Let go of an adapter: at once, unless a request has it; then when the last of them has ended.

        Where a forward pass of others lasts longer than `END_SECONDS`, it is let go of after that.
        """
        if not self.home.here:
            return
        with self._changed:
            if self._thread is None or self._ended:
                return
            farewell = _Farewell(adapter)
            self._farewells.append(farewell)
            used = self._used(adapter)
            self._changed.notify()
        if not used and not is_serving():  # two schedulers that wait for each other would wait for ever
            farewell.gone.wait(END_SECONDS)

    def close(self) -> None:
        """Take no more requests, and end the thread: now if there is nothing to do, else after the last answer."""
        with self._changed:
            self._closing = True
            busy, thread = bool(self._jobs or self._waiting), self._thread
            self._changed.notify()
        if not busy and thread is not None and not is_serving():
            thread.join()

    def abandon(self) -> None:
        """End the thread, and all requests as cancelled; a run that lasts is ended."""
        if not self.home.here:
            return
        self._abandoned.set()
        self.close()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        loop: Loop | None = None
        self._watchdog = Watchdog(self._look_in)
        with serving():
            while True:
                try:
                    if not self._next():
                        break
                    loop = self._turn(loop)
                # Not of one request: nothing of this loop can be trusted any more. Also what is no Exception must not
                # end the thread: others wait for it.
                except BaseException as error:
                    loop = self._decoder = None
                    self._fail(error)
            self._decoder = None
            self._watchdog.close()
            self._end()

    def _turn(self, loop: Loop | None) -> Loop:
        """Begin a waiting request, and generate the next token of all."""
        with self._changed:
            self._rested = False
            job = self._waiting.popleft() if self._waiting and len(self._jobs) < self.rows else None
            if job is not None:
                self._jobs[id(job)] = job
        if loop is None or self._decoder is None:
            self._decoder = self._engine.decoder(adapters=self._adapters, watchdog=self._watchdog)
            loop = Loop(self._decoder)
        if job is not None:
            _tell(job.started)
            self._drive(loop.begin(id(job), job.request))
        if loop.active:
            rows, begin = loop.active, time.perf_counter()
            tokens = self._drive(loop.step())
            for on_step, _ in self._followers:
                _tell(on_step, rows, self.rows, time.perf_counter() - begin, tokens)
        return loop

    def _next(self) -> bool:
        """Wait for something to do; False when there is nothing more to come."""
        while True:
            self._end_cancelled()
            self._take_leave()
            with self._changed:
                if self._abandoned.is_set():
                    return False
                if self._jobs or self._waiting:
                    return True
                if self._farewells:
                    continue
                if self._rested:
                    if self._closing:
                        return False
                    self._changed.wait()
                    continue
                if self._decoder is not None:
                    self._decoder.rest()
                self._rested = True
            for _, on_rest in self._followers:
                _tell(on_rest)

    def _look_in(self) -> bool:
        """Whether to end the run that goes on, for the sake of one of its rows or of one that it keeps waiting.

        The watchdog's thread asks. Requests without a row yet it ends here: the run goes on meanwhile.
        """
        with serving():
            self._end_cancelled()
        return any(job.request.cancelled() for job in list(self._jobs.values()))

    # Each of these in a function of its own: what a waiting thread has in its hands is not freed.

    def _end_cancelled(self) -> None:
        """End the requests that were cancelled before their turn."""
        with self._changed:
            cancelled = [
                (job, step) for job in self._waiting if (step := _cancelled(job.request)) is not None
            ]
            for job, _ in cancelled:
                self._waiting.remove(job)
        for job, step in cancelled:
            self._deliver(job, step)

    def _take_leave(self) -> None:
        """Let go of the adapters that are to be forgotten and that no request has any more."""
        with self._changed:
            leaving = [one for one in self._farewells if not self._used(one.adapter)]
            self._farewells = [one for one in self._farewells if one not in leaving]
        for one in leaving:
            if self._decoder is not None:
                self._decoder.forget(one.adapter)
            one.gone.set()

    def _fail(self, error: BaseException) -> None:
        step = Step(None, error=ordinary(error, "the engine"))
        for job in list(self._jobs.values()):
            self._deliver(job, step)

    def _end(self) -> None:
        """Nobody shall wait for a thread that is gone."""
        with self._changed:
            self._ended = True
            jobs, farewells = [*self._jobs.values(), *self._waiting], self._farewells
            self._waiting.clear()
        for job in jobs:
            self._deliver(job, Step(None, finish_reason="cancelled"))
        for one in farewells:
            one.gone.set()

    def _used(self, adapter: BoundAdapter) -> bool:
        return any(job.request.adapter is adapter for job in [*self._jobs.values(), *self._waiting])

    def _drive(self, steps: Iterator[tuple[int, Step]]) -> int:
        """Deliver steps; how many tokens they had."""
        tokens = 0
        for key, step in steps:
            tokens += step.token_id is not None
            self._deliver(self._jobs[key], step)
        return tokens

    def _deliver(self, job: _Job, step: Step) -> None:
        if step.finish_reason is not None or step.error is not None:
            with self._changed:
                self._jobs.pop(id(job), None)
        _tell(job.deliver, step, time.perf_counter())


def _tell(function: Callable[..., object], *arguments: object) -> None:
    """Call what must not raise, and log it where it does: the other requests go on."""
    error = raised_by(function, *arguments)
    if error is not None:
        _LOG.error("a function that follows the scheduler raised; the generation goes on", exc_info=error)


def _either(one: Callable[[], bool], other: Callable[[], bool]) -> bool:
    return one() or other()


def _cancelled(request: Request) -> Step | None:
    """The last step of a request that waits and was cancelled."""
    try:
        return Step(None, finish_reason="cancelled") if request.cancelled() else None
    except BaseException as error:
        return Step(None, error=ordinary(error, "a function that says whether the request is cancelled"))


_RUNNING: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """ONNX Runtime must not be unloaded under a thread that uses it."""
    for scheduler in list(_RUNNING):
        scheduler.abandon()
