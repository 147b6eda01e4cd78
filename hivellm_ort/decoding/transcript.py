"""What is collected of an answer while it is generated."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from hivellm_ort.callbacks import is_interrupt, raised_by
from hivellm_ort.decoding.logprobs import TokenLogprob
from hivellm_ort.decoding.loop import Request, Step
from hivellm_ort.decoding.serving import refuse_to_wait
from hivellm_ort.errors import GrammarError, InferenceError
from hivellm_ort.forking import Home
from hivellm_ort.result import FinishReason, InferenceResult, Timings

__all__ = ["Observer", "Transcript"]

_LOG = logging.getLogger("hivellm_ort")
_PATIENCE = 0.5  # seconds: on Windows Ctrl-C does not interrupt a wait


class Observer(Protocol):
    """Told what becomes of a request, by the thread that answers it; it must not wait."""

    def started(self) -> None:
        """Its turn has come."""

    def first_token(self) -> None:
        """Its first token is there."""

    def ended(self) -> None:
        """It has ended; whoever waits for it is told next."""


class Transcript:
    """The steps of one request, put together. One thread adds them, others wait for them.

    Args:
        request: the request.
        sampling: how its tokens are chosen, option by option.
        expert: name of the expert.
        warnings: what is to be said of the request's grammar.

    Attributes:
        request: as given.
        sampling: as given.
        expert: as given.
        warnings: as given.
        pieces: text as it became certain; None after the last.
        ended: set after the last step.
        error: what the answer ended with, in place of a result.
        observer: told of the request.
    """

    def __init__(
        self, request: Request, *, sampling: Mapping[str, Any], expert: str, warnings: tuple[str, ...] = ()
    ):
        self.request = request
        self.warnings = warnings
        self.expert = expert
        self.pieces: SimpleQueue[str | None] = SimpleQueue()
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.observer: Observer | None = None
        self.sampling = sampling
        self._home = Home("an answer that began before")
        self._begin = self._turn = self._first = self._last = time.perf_counter()
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._started = False
        self._forced = 0
        self._grammar_complete: bool | None = None
        self._finish_reason: FinishReason | None = None
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Its turn has come."""
        self._started = True
        self._turn = self._first = self._last = time.perf_counter()
        if self.observer is not None:
            _tell(self.observer.started)

    def add(self, step: Step, now: float) -> None:
        """Add a step.

        Args:
            step: the step.
            now: when it was done, of `time.perf_counter`.
        """
        self._last = now
        if not self._started:  # cancelled before its turn
            self._started, self._turn = True, now
        first = not self._tokens
        if first:
            self._first = now
        if step.token_id is not None:
            self._tokens.append(step.token_id)
        if step.logprob is not None:
            self._logprobs.append(step.logprob)
        self._forced += step.forced
        self._texts.append(step.text)
        self._reasoning.append(step.reasoning)
        if first and self._tokens and self.observer is not None:
            _tell(self.observer.first_token)
        if step.text:
            self.pieces.put(step.text)
        if step.finish_reason is not None or step.error is not None:
            self._end(step)
        elif step.text:
            for listener in self._listeners:
                _tell(listener)

    @property
    def here(self) -> bool:
        """Whether this process generates it."""
        return self._home.here

    def wait(self) -> None:
        """Return when the answer has ended.

        Raises:
            InferenceError: this is the thread that generates it, or another process does.
        """
        refuse_to_wait()
        if not self.ended.is_set():
            self._home.require()
        while not self.ended.wait(_PATIENCE):
            pass

    def next_piece(self) -> str | None:
        """The next of `pieces`, as soon as there is one. Raises as `wait`."""
        refuse_to_wait()
        if not self.ended.is_set():
            self._home.require()
        while True:
            with contextlib.suppress(Empty):
                return self.pieces.get(timeout=_PATIENCE)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called after every piece of text and at the end, by the thread that adds the steps.

        It is called at once if the answer has ended. It must not wait; what it raises is logged.
        """
        with self._lock:
            self._listeners.append(listener)
            ended = self.ended.is_set()
        if ended:
            _tell(listener)

    def result(self) -> InferenceResult:
        """What was generated.

        Raises:
            InferenceError: it is still going on.
            Exception: the one that it ended with.
        """
        if self.error is not None:
            raise self.error
        if self._finish_reason is None:
            raise InferenceError("the answer has not ended: iterate to its end, or close() it, before result")
        request, lookup = self.request, self.request.lookup
        return InferenceResult(
            text="".join(self._texts),
            reasoning="".join(self._reasoning).strip(),
            tokens=tuple(self._tokens),
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=request.cached_tokens,
            completion_tokens=len(self._tokens),
            accepted_tokens=lookup.accepted if lookup is not None else 0,
            forced_tokens=self._forced,
            grammar_complete=self._grammar_complete,
            finish_reason=self._finish_reason,
            logprobs=tuple(self._logprobs) if request.logprobs is not None else None,
            sampling=self.sampling,
            timings=self.timings(),
            expert=self.expert,
            warnings=self.warnings,
        )

    def timings(self) -> Timings:
        """Where the time went so far."""
        return Timings(
            queue=self._turn - self._begin,
            swap=self.request.swap_seconds,
            prefill=self._first - self._turn,
            decode=self._last - self._first,
        )

    def _end(self, step: Step) -> None:
        self._finish_reason = step.finish_reason
        self._grammar_complete = step.grammar_complete
        self.error = step.error
        if isinstance(step.error, GrammarError):
            step.error.text = "".join(self._texts)
        try:
            if self.observer is not None:
                _tell(self.observer.ended)
        finally:  # Ctrl-C must not leave anybody waiting
            # Whoever keeps the answer shall not keep its expert in memory.
            self.observer = self.request.adapter = None
            with self._lock:
                self.ended.set()
                listeners = list(self._listeners)
            self.pieces.put(None)
            for listener in listeners:
                _tell(listener)


def _tell(listener: Callable[[], None]) -> None:
    """Call what must not disturb the requests that are answered beside this one."""
    error = raised_by(listener)
    if error is None:
        return
    if is_interrupt(error):
        raise error
    _LOG.error("a listener of an answer raised; the generation goes on", exc_info=error)
