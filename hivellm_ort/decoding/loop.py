"""The one decode generator; everything that generates is a wrapper around it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from hivellm_ort.callbacks import ordinary
from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.logprobs import TokenLogprob, token_logprob
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.sampler import LogitsProcessor, Sampler, chosen_by_graph, greedy
from hivellm_ort.errors import InterruptedRunError
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.matcher import fill_masks
from hivellm_ort.result import FinishReason

__all__ = ["Loop", "Model", "Request", "Step"]

_StepT = TypeVar("_StepT", bound="Step | None")

# So many forced tokens per row of a batch go with the steps of all rows: one more row makes a step little longer, and
# a pass for the tokens of one row alone takes as long as a step of several.
_FEW_PER_ROW = 2


class Model(Protocol):
    """What the loop needs of the engine: rows of tokens, each with an adapter of its own.

    `append` and `step` may raise InterruptedRunError when a request of a row was cancelled, whichever row they read
    for. A row then has the tokens that it had, and after `append` those more that the error says.
    """

    swap_seconds: float

    def start(self, row: int, adapter: Any, capacity: int, token_ids: Sequence[int]) -> int:
        """Begin a row anew, for these tokens; how many of them need not be read again."""

    def append(
        self, row: int, token_ids: Sequence[int], wanted: int = 1, *, greedy: bool = False
    ) -> FloatArray | IntArray:
        """Read tokens into a row; the logits after the last `wanted`, [wanted, vocab], until the next call.

        With `greedy` it may give int64 [wanted] instead, of each position the most likely token, -1 for none.
        """

    def step(self, token_ids: Sequence[int], *, greedy: bool = False) -> FloatArray | IntArray:
        """Read a token into each of the first rows; logits [rows, vocab], until the next call.

        With `greedy` it may give tokens instead, int64 [rows], as `append`.
        """

    def truncate(self, row: int, length: int) -> None:
        """Forget the last tokens of a row."""

    def move(self, source: int, target: int) -> None:
        """Put a row in the place of another."""

    def keep(self, row: int, token_ids: Sequence[int]) -> None:
        """Offer what a row has read to later requests."""


@dataclass(kw_only=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt_ids: at least one token.
        adapter: what the engine binds; None for the base alone.
        sampler: fresh; picks a token from logits float32 [vocab].
        answer: fresh; makes text of the tokens.
        eos_token_ids: tokens that end the answer.
        max_tokens: at least 1.
        process: changes the logits before sampling; gets the token ids so far, prompt included, int64 [n].
        constraint: fresh; the grammar of the answer. Tokens that it forces are not sampled.
        closing_token_ids: tokens that are a stop string where the grammar is complete.
        logprobs: how many of the likeliest tokens to give with each token; None for no probabilities at all.
        lookup: fresh; guesses tokens; None for one token at a time.
        cancelled: asked before every step, and by another thread while a step lasts long.
        cached_tokens: set when the row begins: tokens of the prompt that were not read again.
        swap_seconds: time it took to bind the adapter; what the row takes when it begins is added.
    """

    prompt_ids: Sequence[int]
    adapter: Any
    sampler: Sampler
    answer: AnswerText
    eos_token_ids: Collection[int]
    max_tokens: int
    process: LogitsProcessor | None = None
    constraint: Constraint | None = None
    closing_token_ids: Collection[int] = ()
    logprobs: int | None = None
    lookup: PromptLookup | None = None
    cancelled: Callable[[], bool] = lambda: False
    cached_tokens: int = 0
    swap_seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token_id: the token; None where the request was cancelled, or failed, before another.
        text: text that is certain now; may be empty, and may hold more than this token's.
        reasoning: the same of a think block before the answer.
        finish_reason: None while the generation goes on.
        logprob: the token's probability, where it was asked for.
        forced: whether the grammar left no other token.
        grammar_complete: of the last step: whether the answer satisfies its grammar; None where it has none.
        error: what ended the request, in place of a finish reason.
    """

    token_id: int | None
    text: str = ""
    reasoning: str = ""
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None
    forced: bool = False
    grammar_complete: bool | None = None
    error: Exception | None = None


class Loop:
    """Answers requests on the rows of a model; they may come and go at any time.

    Every step that it yields comes with the key of its request. The texts of a request's steps joined are its answer;
    its last step, and only it, has a `finish_reason` or an `error`. A request that fails ends alone, unless the model
    fails on a step of all rows.

    Args:
        model: rows of the engine, none of them in use.
    """

    def __init__(self, model: Model):
        self._model = model
        self._rows: list[_Row] = []
        self._again = False  # whether the rows were to take a step, and did not

    @property
    def active(self) -> int:
        """How many requests are being answered."""
        return len(self._rows)

    def adapters(self) -> list[Any]:
        """Their adapters."""
        return [row.request.adapter for row in self._rows]

    def begin(self, key: int, request: Request) -> Iterator[tuple[int, Step]]:
        """Read a request's prompt in the next free row, and generate its first token."""
        row = _Row(key, request)
        place = len(self._rows)
        last: Step | None = None
        for step in _guarded(row, row.begin(self._model, place)):
            if step is None:
                # The others wait for this row, which may take for ever: theirs are given back when it has begun.
                yield from self._end_cancelled()
            elif row.finished:
                last = step
            else:
                yield key, step
        if row.started and not row.failed:
            # Others may begin alike, and need not wait for the end of this answer.
            self._model.keep(place, row.token_ids)
        if not row.finished:
            self._rows.append(row)
        self._remove_finished()
        if last is not None:
            yield key, last

    def step(self) -> Iterator[tuple[int, Step]]:
        """Generate the next token of every request, of a single one perhaps several."""
        self._again = True
        while self._again:
            self._again = False
            last: list[tuple[int, Step]] = []
            for key, step in self._next_tokens():
                if step.finish_reason is None and step.error is None:
                    yield key, step
                else:
                    last.append((key, step))
            # Whoever learns that an answer has ended may rely on its row being free, and its prefix kept.
            self._remove_finished()
            yield from last

    def _next_tokens(self) -> Iterator[tuple[int, Step]]:
        rows, model = self._rows, self._model
        if len(rows) == 1:
            for step in _guarded(rows[0], rows[0].advance(model)):
                yield rows[0].key, step
        elif rows:
            try:
                for place, row in enumerate(rows):
                    row.catch_up(model, place, _FEW_PER_ROW * len(rows))
                plain = all(row.plain for row in rows)
                logits = model.step([row.next_unread for row in rows], greedy=plain)
            except (
                InterruptedRunError
            ):  # the others take the step again, at once: no more of them can be cancelled
                self._again = True
                yield from self._end_cancelled()
            except BaseException as error:  # nothing of these rows can be trusted any more
                for row in rows:
                    yield row.key, row.fail(error)
            else:
                choosing = [row.request.constraint for row in rows if row.chooses]
                # One of them failed: `apply` does it for each alone, and tells.
                with contextlib.suppress(BaseException):
                    fill_masks([constraint for constraint in choosing if constraint is not None])
                for row, scores in zip(rows, logits, strict=True):
                    for step in _guarded(row, row.read(scores)):
                        yield row.key, step

    def _end_cancelled(self) -> Iterator[tuple[int, Step]]:
        """End the requests that were cancelled, and those that cannot say so."""
        for row in self._rows:
            if not row.finished:
                for step in _guarded(row, row.end_if_cancelled()):
                    yield row.key, step

    def _remove_finished(self) -> None:
        """Give back the rows of finished requests; the rows in use stay the first ones."""
        rows = self._rows
        for place in reversed(range(len(rows))):
            if rows[place].finished:
                if not rows[place].failed:
                    self._model.keep(place, rows[place].token_ids)
                last = len(rows) - 1
                if place != last:
                    self._model.move(last, place)
                    rows[place] = rows[last]
                rows.pop()


def _guarded(row: _Row, steps: Iterator[_StepT]) -> Iterator[_StepT | Step]:
    """The steps; what a grammar, a processor or the model raises on this row becomes the last of them."""
    step: _StepT | Step
    while not row.failed:
        try:
            step = next(steps)
        except StopIteration:
            return
        except BaseException as error:
            step = row.fail(error)
        # Not under that `try`: what closes this generator is no failure of the row.
        yield step


class _Row:
    """A request that is being answered."""

    def __init__(self, key: int, request: Request):
        self.key = key
        self.request = request
        self.token_ids = list(request.prompt_ids)
        self.started = self.finished = self.failed = False
        self._end = len(request.prompt_ids) + request.max_tokens
        self._unread = (
            0  # how many of the last tokens the model has not read; at least one between two passes
        )
        self._forced: deque[int] = deque()  # what the grammar says comes next
        # Whether it needs no logits: the most likely token is always taken, and nothing is told of the others.
        others = (request.process, request.constraint, request.logprobs)
        self.plain = request.sampler is greedy and all(other is None for other in others)

    def begin(self, model: Model, place: int) -> Iterator[Step | None]:
        """Read the prompt, and generate the first token; None where another row was cancelled before that."""
        request = self.request
        if request.cancelled():
            yield self._cancel()
            return
        capacity = len(self.token_ids) + min(request.max_tokens, 256)
        request.cached_tokens = model.start(place, request.adapter, capacity, self.token_ids)
        self.started = True
        request.swap_seconds += model.swap_seconds
        if request.constraint is not None:
            yield from self.accept(None)
        if not self.finished:
            unread = self.token_ids[request.cached_tokens :]
            while True:
                try:
                    logits = model.append(place, unread, greedy=self.plain)
                    break
                except InterruptedRunError as interrupted:
                    unread = unread[interrupted.read :]
                if request.cancelled():
                    yield self._cancel()
                    return
                yield None
            self._unread = 0
            yield from self.accept(logits[0])

    def advance(self, model: Model) -> Iterator[Step]:
        """Read the last tokens and a guess at what follows, and generate the tokens guessed right, plus one."""
        request, lookup = self.request, self.request.lookup
        if request.cancelled():
            yield self._cancel()
            return
        start = len(self.token_ids)
        guess = lookup.guess(self.token_ids, self._end - start - 1) if lookup is not None else []
        if guess and request.constraint is not None:
            guess = guess[: request.constraint.fits(guess)]
        tokens = [*self.token_ids[-self._unread :], *guess]
        try:
            logits = model.append(0, tokens, len(guess) + 1, greedy=self.plain)
        except InterruptedRunError:
            model.truncate(0, start + len(guess) - len(tokens))
            yield from self.end_if_cancelled()
            return
        right, count = 0, 0
        while right == count <= len(guess) and not self.finished:
            yield from self.accept(logits[count])
            count = len(self.token_ids) - start
            while right < min(count, len(guess)) and self.token_ids[start + right] == guess[right]:
                right += 1
        self._unread = count - right
        if lookup is not None and guess:
            model.truncate(0, start + right)
            lookup.record(len(guess), right)

    @property
    def next_unread(self) -> int:
        """The first token that the model has not read."""
        return self.token_ids[-self._unread]

    @property
    def chooses(self) -> bool:
        """Whether that is the last one, so that a token is chosen after it."""
        return self._unread == 1

    def catch_up(self, model: Model, place: int, few: int) -> None:
        """Read all tokens but the last, where they are more than a few."""
        if self._unread - 1 > few:
            try:
                model.append(place, self.token_ids[-self._unread : -1], greedy=True)  # of no use either way
            except InterruptedRunError as interrupted:
                self._unread -= interrupted.read
                raise
            self._unread = 1

    def read(self, logits: FloatArray) -> Iterator[Step]:
        """Generate the next token from what came after the first unread one, if that was the last of them."""
        self._unread -= 1
        if not self._unread:
            yield from self.accept(logits)
        elif self.request.cancelled():
            yield self._cancel()

    def accept(self, logits: FloatArray | np.int64 | None) -> Iterator[Step]:
        """Choose the next token from its logits, float32 [vocab], and take those that the grammar forces after it.

        In place of logits it may be the token, as a graph chose it. Without, as before the first token, only those
        that the grammar forces.
        """
        request = self.request
        if request.cancelled():
            yield self._cancel()
            return
        if isinstance(logits, np.int64):
            yield self._take(chosen_by_graph(int(logits)))
        elif logits is not None:
            yield self._choose(logits)
        elif request.constraint is not None:
            self._forced.extend(request.constraint.forced())
        # Probabilities are those of the model: where they are wanted, forced tokens wait for logits too.
        while self._forced and request.logprobs is None and not self.finished:
            yield self._take(self._forced.popleft(), forced=True)

    def end_if_cancelled(self) -> Iterator[Step]:
        """End the request if it was cancelled."""
        if self.request.cancelled():
            yield self._cancel()

    def fail(self, error: BaseException) -> Step:
        """The last step of a request that cannot go on."""
        self.finished = self.failed = True
        step = Step(None, error=ordinary(error, "a function that this request called"))
        # What has failed may fail again when it is asked how far it came.
        with contextlib.suppress(BaseException):
            step = self._last(step)
        return step

    def _choose(self, logits: FloatArray) -> Step:
        request = self.request
        forced = bool(self._forced)
        if forced:
            token = self._forced.popleft()
        else:
            scores = logits
            if request.process is not None:
                scores = request.process(np.array(self.token_ids, np.int64), scores)
            if request.constraint is not None:
                scores = request.constraint.apply(scores)
            token = request.sampler(scores)
        logprob = None if request.logprobs is None else token_logprob(logits, token, request.logprobs)
        return self._take(token, logprob, forced=forced)

    def _take(self, token: int, logprob: TokenLogprob | None = None, *, forced: bool = False) -> Step:
        """Add a token to the answer."""
        request, constraint = self.request, self.request.constraint
        reason: FinishReason | None = None
        if token in request.eos_token_ids:
            reason = "eos"
        elif constraint is not None:
            if token in request.closing_token_ids and constraint.complete:
                reason = "stop"
            else:
                constraint.accept(token)
                reason = "grammar" if constraint.finished else None
            if reason is None and not self._forced:
                self._forced.extend(constraint.forced())
        self.token_ids.append(token)
        self._unread += 1
        thought, text, stopped = "", "", False
        if reason == "stop":
            thought, text = request.answer.close(token)
        elif reason != "eos":
            thought, text, stopped = request.answer.push(token)
        if stopped:
            reason = "stop"
        elif reason is None and len(self.token_ids) >= self._end:
            reason = "length"
        self.finished = reason is not None
        step = Step(token, text, thought, reason, logprob, forced)
        return self._last(step) if self.finished else step

    def _cancel(self) -> Step:
        self.finished = True
        return self._last(Step(None, finish_reason="cancelled"))

    def _last(self, step: Step) -> Step:
        """The step with the text that was held back, and whether the answer satisfies its grammar."""
        answer, constraint, reason = self.request.answer, self.request.constraint, step.finish_reason
        # A grammar makes whole characters only; what cuts its answer short must not cut one.
        thought, text, stopped = answer.flush(cut=constraint is not None and reason not in ("eos", "grammar"))
        if stopped and reason in ("eos", "grammar", "length"):
            reason = "stop"
        complete = None if constraint is None else constraint.complete
        if constraint is not None and stopped:
            surplus = answer.surplus()
            constraint.rollback(surplus or 0)
            complete = surplus is not None and constraint.complete
        return replace(
            step,
            text=step.text + text,
            reasoning=step.reasoning + thought,
            finish_reason=reason,
            grammar_complete=complete,
        )
