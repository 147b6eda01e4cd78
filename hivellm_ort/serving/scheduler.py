"""Runs the generations of one base in one thread, so that they share every forward pass."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hivellm_ort.callbacks import as_exception, raised_by
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.session import Engine
from hivellm_ort.engine.watchdog import END_SECONDS, Watchdog
from hivellm_ort.errors import InferenceError
from hivellm_ort.forking import Home
from hivellm_ort.serving.generation import Generation, Step
from hivellm_ort.serving.loop import Loop
from hivellm_ort.serving.threads import is_serving, serving

__all__ = ["DEFAULT_ROWS", "OnIdle", "OnStep", "Scheduler"]

_LOG = logging.getLogger("hivellm_ort")

DEFAULT_ROWS = 8
"""Default maximum of generations that share a forward pass."""

OnStep = Callable[[int, int, float, int], None]
OnIdle = Callable[[], None]


@dataclass(eq=False)
class _Release:
    """An adapter to release, and an event for the waiting thread."""

    adapter: BoundAdapter
    done: threading.Event = field(default_factory=threading.Event)


class Scheduler:
    """Runs the generations of one graph of a base, first come, first served, up to the number of rows.

    At most one waiting generation starts between two steps, so that running generations are not delayed much. One
    thread does this. It starts with the first generation and ends with `close`. Every method may be called from any
    thread. Callbacks of this thread may call `submit` and `release`, which do not wait there.

    Args:
        engine: The base.
        adapters: Whether to use the graph with adapter inputs.

    Attributes:
        home: The process that owns its thread.
    """

    def __init__(self, engine: Engine, *, adapters: bool):
        self.home = Home("an expert that was loaded before")
        self._engine = engine
        self._adapters = adapters
        self._followers: tuple[tuple[OnStep, OnIdle], ...] = ()  # replaced as a whole, never changed
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._running: set[Generation] = set()
        self._releases: list[_Release] = []
        self._reserved: list[int] = []
        self._decoder: Decoder | None = None
        self._thread: threading.Thread | None = None
        self._closing = self._abandoned = self._ended = False
        self._idle = True

    @property
    def rows(self) -> int:
        """Current maximum of generations that share a forward pass."""
        return max([DEFAULT_ROWS, *self._reserved])

    @property
    def active(self) -> int:
        """Number of running generations."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Number of generations that wait for a row."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache."""
        decoder = self._decoder
        return decoder.nbytes if decoder is not None else 0

    @contextlib.contextmanager
    def reserve(self, rows: int) -> Iterator[None]:
        """Allow at least this number of rows while the block runs."""
        with self._changed:
            self._reserved.append(rows)
        try:
            yield
        finally:
            with self._changed:
                self._reserved.remove(rows)

    def submit(self, generation: Generation) -> None:
        """Run a generation as soon as a row is free. If that is impossible, it ends with an error."""
        try:
            self._submit(generation)
        except InferenceError as error:
            generation.end_before_start(error)

    def _submit(self, generation: Generation) -> None:
        self.home.require()
        with self._changed:
            if self._closing:
                raise InferenceError("the base was closed: load the expert again")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="hivellm_ort", daemon=True)
                thread.start()
                self._thread = thread
                _RUNNING.add(self)
            self._waiting.append(generation)
            self._changed.notify()

    def follow(self, on_step: OnStep, on_idle: OnIdle) -> Callable[[], None]:
        """Add functions that the scheduler's thread calls. They must not raise.

        Args:
            on_step: Called after every prompt and every step of the running rows, with the number of used rows, the
                maximum of rows, the seconds, and the number of computed tokens.
            on_idle: Called when nothing is left to do and memory was freed.

        Returns:
            A function that removes them.
        """
        follower = (on_step, on_idle)

        def stop() -> None:
            with self._changed:
                self._followers = tuple(one for one in self._followers if one is not follower)

        with self._changed:
            self._followers = (*self._followers, follower)
        return stop

    def release(self, adapter: BoundAdapter) -> None:
        """Release an adapter: at once, or after the last generation that uses it.

        If a forward pass of others takes longer than `END_SECONDS`, this returns before the release.
        """
        if not self.home.here:
            return
        with self._changed:
            if self._thread is None or self._ended:
                return
            release = _Release(adapter)
            self._releases.append(release)
            used = self._used(adapter)
            self._changed.notify()
        if not used and not is_serving():  # two schedulers would wait for each other forever
            release.done.wait(END_SECONDS)

    def close(self) -> None:
        """Accept no more generations, and end the thread after the last answer. If idle, wait for its end."""
        with self._changed:
            self._closing = True
            busy, thread = bool(self._running or self._waiting), self._thread
            self._changed.notify()
        if not busy and thread is not None and not is_serving():
            thread.join()

    def abandon(self) -> None:
        """Cancel all generations and end the thread. A running forward pass is interrupted."""
        if not self.home.here:
            return
        with self._changed:
            self._abandoned = True
            for generation in [*self._running, *self._waiting]:
                generation.cancel()
        self.close()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        loop: Loop | None = None
        self._watchdog = Watchdog(self._pass_unwanted)
        with serving():
            while True:
                try:
                    if not self._next():
                        break
                    loop = self._turn(loop)
                # The error is not of one request, so the state of the loop is unknown. Not even a BaseException may
                # end the thread: other threads wait for it.
                except BaseException as error:
                    loop = self._decoder = None
                    self._fail(error)
            self._decoder = None
            self._watchdog.close()
            self._end()

    def _turn(self, loop: Loop | None) -> Loop:
        """Start a waiting generation, and run one step of all."""
        with self._changed:
            self._idle = False
            starting = self._waiting.popleft() if self._waiting and len(self._running) < self.rows else None
            if starting is not None:
                self._running.add(starting)
        if loop is None or self._decoder is None:
            self._decoder = self._engine.decoder(adapters=self._adapters, watchdog=self._watchdog)
            loop = Loop(self._decoder)
        if starting is not None:
            starting.start()
            self._drive(self._decoder, 1, loop.begin(starting))
        if loop.active:
            self._drive(self._decoder, loop.active, loop.step())
        return loop

    def _next(self) -> bool:
        """Wait for work. Return False if the thread should end."""
        while True:
            self._end_cancelled()
            self._release_unused()
            with self._changed:
                if self._abandoned:
                    return False
                if self._running or self._waiting:
                    return True
                if self._releases:
                    continue
                if self._idle:
                    if self._closing:
                        return False
                    self._changed.wait()
                    continue
                if self._decoder is not None:
                    self._decoder.free_rows()
                self._idle = True
            for _, on_idle in self._followers:
                _tell(on_idle)

    def _pass_unwanted(self) -> bool:
        """Return whether to interrupt the forward pass, because one of its generations was cancelled.

        The watchdog's thread calls this. It also ends cancelled generations in the queue, while the pass goes on.
        """
        with serving():
            self._end_cancelled()
        with self._changed:
            return any(generation.cancelled for generation in self._running)

    # These are separate functions, so that a waiting thread holds no references in local variables.

    def _end_cancelled(self) -> None:
        """End the waiting generations that were cancelled."""
        with self._changed:
            cancelled = [one for one in self._waiting if one.cancelled]
            for one in cancelled:
                self._waiting.remove(one)
        for one in cancelled:
            self._deliver(one, Step(None, finish_reason="cancelled"))

    def _release_unused(self) -> None:
        """Release the adapters that no generation uses any more."""
        with self._changed:
            leaving = [one for one in self._releases if not self._used(one.adapter)]
            self._releases = [one for one in self._releases if one not in leaving]
        for one in leaving:
            if self._decoder is not None:
                self._decoder.release(one.adapter)
            one.done.set()

    def _fail(self, error: BaseException) -> None:
        step = Step(None, error=as_exception(error, "the engine"))
        for generation in list(self._running):
            self._deliver(generation, step)

    def _end(self) -> None:
        """End everything that waits for this thread."""
        with self._changed:
            self._ended = True
            left, releases = [*self._running, *self._waiting], self._releases
            self._waiting.clear()
        for generation in left:
            self._deliver(generation, Step(None, finish_reason="cancelled"))
        for one in releases:
            one.done.set()

    def _used(self, adapter: BoundAdapter) -> bool:
        return any(one.adapter is adapter for one in [*self._running, *self._waiting])

    def _drive(self, decoder: Decoder, rows: int, steps: Iterator[tuple[Generation, Step]]) -> None:
        """Deliver steps, and report their duration to the followers if tokens were computed."""
        begin, read = time.perf_counter(), decoder.tokens_read
        for generation, step in steps:
            self._deliver(generation, step)
        read = decoder.tokens_read - read
        if read:
            for on_step, _ in self._followers:
                _tell(on_step, rows, self.rows, time.perf_counter() - begin, read)

    def _deliver(self, generation: Generation, step: Step) -> None:
        if step.last:
            with self._changed:
                self._running.discard(generation)
        _tell(generation.add, step, time.perf_counter())


def _tell(function: Callable[..., object], *arguments: object) -> None:
    """Call a function and log its error, so that other requests go on."""
    error = raised_by(function, *arguments)
    if error is not None:
        _LOG.error("a function that follows the scheduler raised; the generation goes on", exc_info=error)


_RUNNING: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """End all threads, because ONNX Runtime must not be unloaded while a thread uses it."""
    for scheduler in list(_RUNNING):
        scheduler.abandon()
