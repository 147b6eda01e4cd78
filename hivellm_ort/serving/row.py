"""One generation on one row of the model."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from hivellm_ort.callbacks import ordinary
from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.logprobs import token_logprob
from hivellm_ort.decoding.sampler import chosen_by_graph, greedy
from hivellm_ort.decoding.scoring import AnswerTree
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import InterruptedRunError
from hivellm_ort.result import FinishReason, TokenLogprob
from hivellm_ort.serving.generation import Generation, Step

__all__ = ["Model", "Row"]

_RESERVED = 256  # tokens of an answer to have room for at once


class Model(Protocol):
    """What is needed of the engine: rows of tokens, each with an adapter of its own.

    `append` and `step` may raise InterruptedRunError when a generation of any row was cancelled. A row then has the
    tokens that it had, and after `append` those more that the error says.
    """

    swap_seconds: float
    tokens_read: int

    def start(self, row: int, adapter: BoundAdapter | None, capacity: int, token_ids: Sequence[int]) -> int:
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


class Row:
    """One row of the model, and the generation that has it: chooses tokens and counts what the model has read.

    Attributes:
        generation: what is answered.
        token_ids: prompt and answer so far.
        started: whether the row of the model was begun.
        finished: whether the generation has had its last step.
        failed: whether that was an error.
        plain: whether it needs no logits: the most likely token is always taken, and no probabilities are told.
    """

    def __init__(self, generation: Generation):
        request = generation.request
        self.generation = generation
        self.token_ids = list(request.prompt_ids)
        self.started = self.finished = self.failed = False
        self._end = len(request.prompt_ids) + request.max_tokens
        # How many of the last tokens the model has not read; at least one between two passes.
        self._unread = 0
        self._forced: deque[int] = deque()  # what the grammar says comes next
        others = (
            generation.process,
            generation.constraint,
            request.sampling.logprobs,
            request.answers or None,
        )
        self.plain = generation.sampler is greedy and all(other is None for other in others)

    def begin(self, model: Model, index: int) -> Iterator[Step | None]:
        """Read the prompt, and generate the first token; None where another row was cancelled before that."""
        generation = self.generation
        if generation.cancelled:
            yield self._cancel()
            return
        capacity = len(self.token_ids) + min(generation.request.max_tokens, _RESERVED)
        generation.cached_tokens = model.start(index, generation.adapter, capacity, self.token_ids)
        self.started = True
        generation.swap_seconds += model.swap_seconds
        if generation.constraint is not None:
            yield from self.accept(None)
        if self.finished:
            return
        logits = yield from self._append(model, index, self.token_ids, generation.cached_tokens)
        if logits is None:
            return
        self._unread = 0
        if generation.request.answers:
            yield from self._score(model, index, logits[0])
        else:
            yield from self.accept(logits[0])

    def _score(self, model: Model, index: int, logits: FloatArray) -> Iterator[Step | None]:
        """Read the given answers after the prompt; the model is left with the prompt."""
        request, length = self.generation.request, len(self.token_ids)
        tree = AnswerTree(request.answers, request.eos_token_ids)
        tree.note((), 0, logits[np.newaxis])
        for path, shared in tree.passes:
            model.truncate(index, length + shared)
            tokens = [*self.token_ids, *path]
            rows = yield from self._append(model, index, tokens, length + shared, wanted=len(path) - shared)
            if rows is None:
                return
            tree.note(path, shared + 1, rows)
        model.truncate(index, length)
        self.generation.scores = tree.scores()
        self.finished = True
        yield Step(None, finish_reason="scored")

    def _append(
        self, model: Model, index: int, token_ids: Sequence[int], length: int, *, wanted: int = 1
    ) -> Generator[Step | None, None, Any]:
        """Read the tokens from `length` on. None comes where another row was cancelled, then it goes on.

        Returns:
            The logits after the last `wanted` tokens; None where this generation was cancelled.
        """
        begin = length
        while True:
            try:
                return model.append(index, token_ids[begin:], wanted, greedy=self.plain)
            except InterruptedRunError as interrupted:
                begin += interrupted.read
            if self.generation.cancelled:
                yield self._cancel()
                return None
            if wanted > 1:  # some of them are lost
                begin = length
                model.truncate(index, length)
            yield None

    def advance(self, model: Model) -> Iterator[Step]:
        """Read the last tokens and a guess at what follows, and generate the tokens guessed right, plus one."""
        generation, lookup = self.generation, self.generation.lookup
        if generation.cancelled:
            yield self._cancel()
            return
        start = len(self.token_ids)
        guess = lookup.guess(self.token_ids, self._end - start - 1) if lookup is not None else []
        if guess and generation.constraint is not None:
            guess = guess[: generation.constraint.fits(guess)]
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

    def catch_up(self, model: Model, index: int, few: int) -> None:
        """Read all tokens but the last, where they are more than a few."""
        if self._unread - 1 > few:
            try:
                model.append(index, self.token_ids[-self._unread : -1], greedy=True)  # of no use either way
            except InterruptedRunError as interrupted:
                self._unread -= interrupted.read
                raise
            self._unread = 1

    def read(self, logits: FloatArray) -> Iterator[Step]:
        """Generate the next token from what came after the first unread one, if that was the last of them."""
        self._unread -= 1
        if not self._unread:
            yield from self.accept(logits)
        elif self.generation.cancelled:
            yield self._cancel()

    def accept(self, logits: FloatArray | np.int64 | None) -> Iterator[Step]:
        """Choose the next token from its logits, float32 [vocab], and take those that the grammar forces after it.

        In place of logits it may be the token, as a graph chose it. Without, as before the first token, only those
        that the grammar forces.
        """
        generation = self.generation
        if generation.cancelled:
            yield self._cancel()
            return
        if isinstance(logits, np.int64):
            yield self._take(chosen_by_graph(int(logits)))
        elif logits is not None:
            yield self._choose(logits)
        elif generation.constraint is not None:
            self._forced.extend(generation.constraint.forced())
        # Probabilities are those of the model: where they are wanted, forced tokens wait for logits too.
        while self._forced and generation.request.sampling.logprobs is None and not self.finished:
            yield self._take(self._forced.popleft(), forced=True)

    def end_if_cancelled(self) -> Iterator[Step]:
        """End the generation if it was cancelled."""
        if self.generation.cancelled:
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
        generation = self.generation
        forced = bool(self._forced)
        if forced:
            token = self._forced.popleft()
        else:
            scores = logits
            if generation.process is not None:
                scores = generation.process(np.array(self.token_ids, np.int64), scores)
            if generation.constraint is not None:
                scores = generation.constraint.apply(scores)
            token = generation.sampler(scores)
        wanted = generation.request.sampling.logprobs
        logprob = None if wanted is None else replace(token_logprob(logits, token, wanted), forced=forced)
        return self._take(token, logprob, forced=forced)

    def _take(self, token: int, logprob: TokenLogprob | None = None, *, forced: bool = False) -> Step:
        """Add a token to the answer."""
        request, constraint = self.generation.request, self.generation.constraint
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
            thought, text = self.generation.answer.close(token)
        elif reason != "eos":
            thought, text, stopped = self.generation.answer.push(token)
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
        answer, constraint = self.generation.answer, self.generation.constraint
        reason = step.finish_reason
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
