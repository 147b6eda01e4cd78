"""One answer from its request to its end: status, result, subscribers.

```
            submit            start               last token, stop, end of grammar
 (made) ──────────▶ WAITING ───────▶ RUNNING ─────────────────────────────────────▶ FINISHED
                       │ cancel,        │ cancel, timeout
                       │ timeout        │
                       ├────────────────┴──────────────────────────────────────────▶ CANCELLED
                       │ its own error, or the model's
                       └───────────────────────────────────────────────────────────▶ FAILED
```
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from hivellm_ort.callbacks import is_interrupt, raised_by
from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.logprobs import shares
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.sampler import LogitsProcessor, Sampler, make_sampler
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import GrammarError, InferenceError, OptionError, argument
from hivellm_ort.forking import Home
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.result import (
    AnswerScore,
    FinishReason,
    InferenceResult,
    ScoreResult,
    Timings,
    TokenLogprob,
    ToolCall,
)
from hivellm_ort.serving.request import GenerationRequest
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.tools.parser import CallIds, ToolCallParser, read_calls

__all__ = ["Generation", "Status", "Step", "Subscriber"]

_LOG = logging.getLogger("hivellm_ort")
_PATIENCE = 0.5  # seconds: on Windows Ctrl-C does not interrupt a wait


class Status(enum.Enum):
    """Status of a generation. The last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token_id: The token; None if the generation was cancelled or failed before it.
        text: The text that became certain. It may be empty, or longer than this token's text.
        reasoning: The same for the think block before the answer.
        finish_reason: None while the generation goes on.
        logprob: The token's log probability, if requested.
        forced: Whether the grammar left no other token.
        thinking: Whether the token belongs to the think block. A tag of several tokens counts once it is complete.
        grammar_complete: In the last step: whether the answer satisfies its grammar; None without a grammar.
        error: The error that ended the generation, in place of a finish reason.
    """

    token_id: int | None
    text: str = ""
    reasoning: str = ""
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None
    forced: bool = False
    thinking: bool = False
    grammar_complete: bool | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        """Whether it is the last step."""
        return self.finish_reason is not None or self.error is not None


class Subscriber(Protocol):
    """Callbacks of a generation, called by the thread that runs it. They must not block. Their errors are logged."""

    def started(self, generation: Generation) -> None:
        """The generation got a row."""

    def first_token(self, generation: Generation) -> None:
        """The first token was generated."""

    def ended(self, generation: Generation) -> None:
        """The generation has ended. Waiting threads are woken after this."""


class Generation:
    """One answer. A scheduler's thread generates it. Other threads may cancel it and wait for it.

    Args:
        request: The request.
        answer: New; turns tokens into text.
        adapter: The adapter to bind; None for the base alone.
        process: The logits processor. Its token ids, int64 [n], include the prompt.
        constraint: New; the grammar of the answer. Forced tokens are not sampled.
        lookup: New; guesses tokens. None for one token at a time.

    Attributes:
        request: As given.
        answer: As given.
        adapter: As given; None after the end, so that a kept answer does not keep an expert in memory.
        process: As given.
        constraint: As given.
        lookup: As given.
        sampler: Chooses a token from logits, float32 [vocab].
        status: Its status.
        error: The error of a failed generation, else None.
        cached_tokens: Prompt tokens taken from the prefix cache.
        swap_seconds: Time to bind the adapter.
        scores: Log probability of each given answer of the request.
        steps: Queue of steps; None after the last.

    Raises:
        OptionError: `timeout` is not above 0.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        answer: AnswerText,
        adapter: BoundAdapter | None = None,
        process: LogitsProcessor | None = None,
        constraint: Constraint | None = None,
        lookup: PromptLookup | None = None,
    ):
        self.request = request
        self.answer = answer
        self.adapter = adapter
        self.process = process
        self.constraint = constraint
        self.lookup = lookup
        self.sampler: Sampler = make_sampler(request.sampling)
        self.status = Status.WAITING
        self.error: Exception | None = None
        self.cached_tokens = 0
        self.swap_seconds = 0.0
        self.scores: list[float] = []
        self.steps: SimpleQueue[Step | None] = SimpleQueue()
        self._home = Home("an answer that began before")
        self._created = self._turn = self._first = self._last = time.perf_counter()
        self._deadline = _deadline(request.timeout)
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._forced = self._thinking = 0
        self._grammar_complete: bool | None = None
        self._finish_reason: FinishReason | None = None
        self._subscribers: list[Subscriber] = []
        self._listeners: list[Callable[[], None]] = []
        self._call_ids = CallIds(request.call_format.family if request.call_format else None)
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self._ended.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether it should end now: it was cancelled, or its timeout is over."""
        return self._cancelled.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)

    @property
    def here(self) -> bool:
        """Whether it belongs to this process and not to its parent."""
        return self._home.here

    def cancel(self) -> None:
        """End it after the running step. Any thread may call this at any time."""
        self._cancelled.set()

    def start(self) -> None:
        """Mark it as running: it got a row."""
        self.status = Status.RUNNING
        self._turn = self._first = self._last = time.perf_counter()
        for subscriber in self._subscribers:
            _tell(subscriber.started, self)

    def add(self, step: Step, now: float) -> None:
        """Add a step. The last step ends the generation.

        Args:
            step: The step.
            now: Time of the step, from `time.perf_counter`.
        """
        self._last = now
        if self.status is Status.WAITING:  # it ends before it starts
            self._turn = now
        first = not self._tokens
        if first:
            self._first = now
        if step.token_id is not None:
            self._tokens.append(step.token_id)
        if step.logprob is not None:
            self._logprobs.append(step.logprob)
        self._forced += step.forced
        if step.thinking:
            self._thinking = len(self._tokens)
        self._texts.append(step.text)
        self._reasoning.append(step.reasoning)
        if first and self._tokens:
            for subscriber in self._subscribers:
                _tell(subscriber.first_token, self)
        self.steps.put(step)
        if step.last:
            self._end(step)
        else:
            for listener in self._listeners:
                _tell(listener)

    def end_before_start(self, error: Exception | None = None) -> None:
        """End it before it got a row: as cancelled, or with an error."""
        reason: FinishReason | None = "cancelled" if error is None else None
        self.add(Step(None, finish_reason=reason, error=error), time.perf_counter())

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscriber. Call this before the generation is submitted."""
        self._subscribers.append(subscriber)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call a function after every step and at the end, in the thread that generates.

        It is called at once if the generation has ended. It must not block. Its errors are logged.
        """
        with self._lock:
            self._listeners.append(listener)
            ended = self.ended
        if ended:
            _tell(listener)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended. Return whether it has.

        Args:
            timeout: Most seconds to wait; None for no limit.

        Raises:
            InferenceError: The caller is the generating thread, or a forked process.
        """
        self._require_waiting()
        if timeout is not None:
            return self._ended.wait(timeout)
        while not self._ended.wait(_PATIENCE):
            pass
        return True

    def next_step(self) -> Step | None:
        """Wait for the next of `steps` and return it. Raises as `wait`."""
        self._require_waiting()
        while True:
            with contextlib.suppress(Empty):
                return self.steps.get(timeout=_PATIENCE)

    def call_parser(self) -> ToolCallParser:
        """Return a new parser of the calls in this answer. Its ids are those of the result."""
        request = self.request
        return ToolCallParser(request.call_format, names=request.tool_names, new_id=self._call_ids)

    def result(self) -> InferenceResult:
        """Return the result.

        Raises:
            InferenceError: It has not ended.
            Exception: Its error, if it failed.
        """
        if self.error is not None:
            raise self.error
        if self._finish_reason is None:
            raise InferenceError("the answer has not ended: iterate to its end, or close() it, before result")
        request, text = self.request, "".join(self._texts)
        content, calls = text, tuple[ToolCall, ...]()
        if request.call_format is not None:
            content, calls = read_calls(
                text, request.call_format, names=request.tool_names, new_id=self._call_ids
            )
        return InferenceResult(
            text=text,
            reasoning="".join(self._reasoning).strip(),
            tokens=tuple(self._tokens),
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self._tokens),
            accepted_tokens=self.lookup.accepted if self.lookup is not None else 0,
            forced_tokens=self._forced,
            reasoning_tokens=self._thinking,
            grammar_complete=self._grammar_complete,
            finish_reason=self._finish_reason,
            logprobs=tuple(self._logprobs) if request.sampling.logprobs is not None else None,
            sampling=request.options,
            timings=self.timings(),
            expert=request.expert,
            warnings=request.warnings,
            tool_calls=calls,
            content=content,
        )

    def score_result(self, answers: Sequence[str]) -> ScoreResult:
        """Return the scores of the given answers; `answers` are their texts.

        Raises:
            InferenceError: It has not ended, or was cancelled.
            Exception: Its error, if it failed.
        """
        result = self.result()
        if not self.scores:
            raise InferenceError(
                "the request was cancelled, or its time was over, before the answers were scored"
            )
        scored = zip(answers, self.request.answers, self.scores, shares(self.scores), strict=True)
        return ScoreResult(
            answers=tuple(AnswerScore(*one) for one in scored),
            prompt_tokens=result.prompt_tokens,
            cached_tokens=result.cached_tokens,
            timings=result.timings,
            expert=result.expert,
        )

    def timings(self) -> Timings:
        """Return the seconds of each phase so far."""
        return Timings(
            queue=self._turn - self._created,
            swap=self.swap_seconds,
            prefill=self._first - self._turn,
            decode=self._last - self._first,
        )

    def _require_waiting(self) -> None:
        refuse_to_wait()
        if not self.ended:
            self._home.require()

    def _end(self, step: Step) -> None:
        self.error = step.error
        self._finish_reason = step.finish_reason
        self._grammar_complete = step.grammar_complete
        if isinstance(step.error, GrammarError):
            step.error.text = "".join(self._texts)
        if step.error is not None:
            self.status = Status.FAILED
        else:
            self.status = Status.CANCELLED if step.finish_reason == "cancelled" else Status.FINISHED
        try:
            for subscriber in self._subscribers:
                _tell(subscriber.ended, self)
        finally:  # Ctrl-C must not leave threads waiting
            self.adapter = None
            self._subscribers.clear()
            with self._lock:
                self._ended.set()
                listeners = list(self._listeners)
            self.steps.put(None)
            for listener in listeners:
                _tell(listener)


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout > 0:
        raise OptionError(f"{argument('timeout')} is {timeout!r}: it must be a number of seconds above 0")
    return time.monotonic() + timeout


def _tell(listener: Callable[..., None], *arguments: object) -> None:
    """Call a function and log its error, so that other requests are not affected."""
    error = raised_by(listener, *arguments)
    if error is None:
        return
    if is_interrupt(error):
        raise error
    _LOG.error("a listener of an answer raised; the generation goes on", exc_info=error)
