"""The generations of one base, run together by one thread: they share every forward pass."""

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
"""Most generations that share a forward pass."""

OnStep = Callable[[int, int, float, int], None]
OnIdle = Callable[[], None]


@dataclass(eq=False)
class _Release:
    """An adapter that is to be released, and who waits for that."""

    adapter: BoundAdapter
    done: threading.Event = field(default_factory=threading.Event)


class Scheduler:
    """Runs the generations of one graph of a base, first come, first served, as many at once as there are rows.

    Between two steps of the running rows at most one waiting generation starts, so that the others go on meanwhile.
    One thread does this. It starts with the first generation, and ends with `close`. Every method may be called from
    any thread. Functions that the thread calls may call `submit` and `release`: there these do not wait.

    Args:
        engine: The base.
        adapters: Whether its generations have adapters.

    Attributes:
        home: The process of its thread.
    """

    def __init__(self, engine: Engine, *, adapters: bool):
        self.home = Home("an expert that was loaded before")
        self._engine = engine
        self._adapters = adapters
        self._followers: tuple[tuple[OnStep, OnIdle], ...] = ()  # replaced, never changed
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
        """Most generations that share a forward pass now."""
        return max([DEFAULT_ROWS, *self._reserved])

    @property
    def active(self) -> int:
        """Generations that are running."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Generations that wait for a row."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        decoder = self._decoder
        return decoder.nbytes if decoder is not None else 0

    @contextlib.contextmanager
    def reserve(self, rows: int) -> Iterator[None]:
        """Allow so many rows meanwhile, where that is more than the default."""
        with self._changed:
            self._reserved.append(rows)
        try:
            yield
        finally:
            with self._changed:
                self._reserved.remove(rows)

    def submit(self, generation: Generation) -> None:
        """Run a generation as soon as a row is free. Where that cannot be, it ends with the error."""
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
        """Have functions called by the scheduler's thread, which must not raise.

        Args:
            on_step: Called after a prompt was read, and after every step of the running rows: rows in use, rows there
                may be, seconds, tokens that were read.
            on_idle: Called when there is nothing more to do and memory was given back.

        Returns:
            What ends that.
        """
        follower = (on_step, on_idle)

        def stop() -> None:
            with self._changed:
                self._followers = tuple(one for one in self._followers if one is not follower)

        with self._changed:
            self._followers = (*self._followers, follower)
        return stop

    def release(self, adapter: BoundAdapter) -> None:
        """Let go of an adapter: at once, unless a generation has it; then when the last of these has ended.

        Where a forward pass of others lasts longer than `END_SECONDS`, it is let go of after that.
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
        if not used and not is_serving():  # two schedulers that wait for each other would wait for ever
            release.done.wait(END_SECONDS)

    def close(self) -> None:
        """Take nothing more, and end the thread: now if there is nothing to do, else after the last answer."""
        with self._changed:
            self._closing = True
            busy, thread = bool(self._running or self._waiting), self._thread
            self._changed.notify()
        if not busy and thread is not None and not is_serving():
            thread.join()

    def abandon(self) -> None:
        """End the thread, and all generations as cancelled; a run that lasts is ended."""
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
                # Not of one request: nothing of this loop can be trusted any more. Also what is no Exception must not
                # end the thread: others wait for it.
                except BaseException as error:
                    loop = self._decoder = None
                    self._fail(error)
            self._decoder = None
            self._watchdog.close()
            self._end()

    def _turn(self, loop: Loop | None) -> Loop:
        """Start a waiting generation, and generate the next token of all."""
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
        """Wait for something to do; False when there is nothing more to come."""
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
                    self._decoder.rest()
                self._idle = True
            for _, on_idle in self._followers:
                _tell(on_idle)

    def _pass_unwanted(self) -> bool:
        """Return whether to end the forward pass that goes on, because one of its generations was cancelled.

        The watchdog's thread asks. It ends waiting generations here: the pass goes on meanwhile.
        """
        with serving():
            self._end_cancelled()
        with self._changed:
            return any(generation.cancelled for generation in self._running)

    # Each of these in a function of its own: what a waiting thread has in its hands is not freed.

    def _end_cancelled(self) -> None:
        """End the generations that were cancelled before their turn."""
        with self._changed:
            cancelled = [one for one in self._waiting if one.cancelled]
            for one in cancelled:
                self._waiting.remove(one)
        for one in cancelled:
            self._deliver(one, Step(None, finish_reason="cancelled"))

    def _release_unused(self) -> None:
        """Let go of the adapters that no generation has any more."""
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
        """Nobody shall wait for a thread that is gone."""
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
        """Deliver steps, and tell the followers what they took; nothing where no token was read."""
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
    """Call what must not raise, and log it where it does: the other requests go on."""
    error = raised_by(function, *arguments)
    if error is not None:
        _LOG.error("a function that follows the scheduler raised; the generation goes on", exc_info=error)


_RUNNING: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """ONNX Runtime must not be unloaded under a thread that uses it."""
    for scheduler in list(_RUNNING):
        scheduler.abandon()
