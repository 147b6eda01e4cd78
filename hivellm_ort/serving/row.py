"""Runs one generation on one row of the model."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from hivellm_ort.callbacks import as_exception
from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.logprobs import AnswerTree, token_logprob
from hivellm_ort.decoding.sampler import chosen_by_graph, greedy
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import InterruptedRunError
from hivellm_ort.result import FinishReason, TokenLogprob
from hivellm_ort.serving.generation import Generation, Step

__all__ = ["Model", "Row"]

_RESERVED = 256  # answer tokens to allocate at first


class Model(Protocol):
    """The interface of the engine: rows of tokens, each with its own adapter.

    `append` and `step` may raise InterruptedRunError if a generation of any row was cancelled. The rows then keep
    their tokens. After `append` the row also has the first `InterruptedRunError.read` new ones.
    """

    swap_seconds: float
    tokens_read: int

    def start(self, row: int, adapter: BoundAdapter | None, capacity: int, token_ids: Sequence[int]) -> int:
        """Reset a row for these tokens. Return how many of them are cached."""

    def append(
        self, row: int, token_ids: Sequence[int], logits_to_keep: int = 1, *, greedy: bool = False
    ) -> FloatArray | IntArray:
        """Compute tokens of a row. Return the logits of the last ones, [logits_to_keep, vocab].

        They are valid until the next call. With `greedy` it may return the argmax of each position instead, int64
        [logits_to_keep]; -1 for none.
        """

    def step(self, token_ids: Sequence[int], *, greedy: bool = False) -> FloatArray | IntArray:
        """Compute one token of each of the first rows. Return logits, [rows, vocab].

        Otherwise as `append`: with `greedy` it may return tokens, int64 [rows].
        """

    def truncate(self, row: int, length: int) -> None:
        """Cut a row to its first `length` tokens."""

    def move(self, source: int, target: int) -> None:
        """Move a row to another index."""

    def save_prefix(self, row: int, token_ids: Sequence[int]) -> None:
        """Put the prefix of a row into the prefix cache."""


class Row:
    """Runs a generation on a row: chooses its tokens, and tracks which of them the model has computed.

    Attributes:
        generation: The generation.
        token_ids: Prompt and answer so far.
        started: Whether the row of the model was reset for it.
        finished: Whether its last step was made.
        failed: Whether it ended with an error.
        greedy_only: Whether the argmax is enough: greedy, without processors, grammar, log probabilities or scores.
    """

    def __init__(self, generation: Generation):
        request = generation.request
        self.generation = generation
        self.token_ids = list(request.prompt_ids)
        self.started = self.finished = self.failed = False
        self._end = len(request.prompt_ids) + request.max_tokens
        # Number of tokens at the end that the model has not computed; at least one between two passes.
        self._unread = 0
        self._forced: deque[int] = deque()  # next tokens that the grammar forces
        others = (
            generation.process,
            generation.constraint,
            request.sampling.logprobs,
            request.answers or None,
        )
        self.greedy_only = generation.sampler is greedy and all(other is None for other in others)

    def begin(self, model: Model, index: int) -> Iterator[Step | None]:
        """Compute the prompt and generate the first token. Yields None if another row was cancelled meanwhile."""
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
        """Score the given answers. Afterwards the row holds only the prompt."""
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
        """Compute the tokens from `length` on. Yields None if another row was cancelled, then goes on.

        Returns:
            The logits after the last `wanted` tokens; None if this generation was cancelled.
        """
        begin = length
        while True:
            try:
                return model.append(index, token_ids[begin:], wanted, greedy=self.greedy_only)
            except InterruptedRunError as interrupted:
                begin += interrupted.read
            if self.generation.cancelled:
                yield self._cancel()
                return None
            if wanted > 1:  # some logits are lost
                begin = length
                model.truncate(index, length)
            yield None

    def advance(self, model: Model) -> Iterator[Step]:
        """Compute the last tokens and a guess of the next ones. Yields the right guesses and one more token."""
        generation, lookup = self.generation, self.generation.lookup
        if generation.cancelled:
            yield self._cancel()
            return
        start = len(self.token_ids)
        guess = lookup.guess(self.token_ids, self._end - start - 1) if lookup is not None else []
        if guess and generation.constraint is not None:
            guess = guess[: generation.constraint.validate_tokens(guess)]
        tokens = [*self.token_ids[-self._unread :], *guess]
        try:
            logits = model.append(0, tokens, len(guess) + 1, greedy=self.greedy_only)
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
        """The first token that the model has not computed."""
        return self.token_ids[-self._unread]

    @property
    def chooses(self) -> bool:
        """Whether `next_unread` is the last token, so that a token is chosen after it."""
        return self._unread == 1

    def catch_up(self, model: Model, index: int, few: int) -> None:
        """Compute all pending tokens but the last, if they are more than `few`."""
        if self._unread - 1 > few:
            try:
                model.append(
                    index, self.token_ids[-self._unread : -1], greedy=True
                )  # the logits are not used
            except InterruptedRunError as interrupted:
                self._unread -= interrupted.read
                raise
            self._unread = 1

    def read(self, logits: FloatArray) -> Iterator[Step]:
        """Take the logits after `next_unread`. If it was the last token, generate the next one."""
        self._unread -= 1
        if not self._unread:
            yield from self.accept(logits)
        elif self.generation.cancelled:
            yield self._cancel()

    def accept(self, logits: FloatArray | np.int64 | None) -> Iterator[Step]:
        """Choose the next token from logits, float32 [vocab], and append the tokens that the grammar forces.

        `logits` may also be a token that the graph chose. With None, before the first token, only forced tokens are
        appended.
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
            self._forced.extend(generation.constraint.forced_tokens())
        # Log probabilities come from the model, so forced tokens wait for logits if they are requested.
        while self._forced and generation.request.sampling.logprobs is None and not self.finished:
            yield self._take(self._forced.popleft(), forced=True)

    def end_if_cancelled(self) -> Iterator[Step]:
        """End the generation if it was cancelled."""
        if self.generation.cancelled:
            yield self._cancel()

    def fail(self, error: BaseException) -> Step:
        """End the generation with an error, and return its last step."""
        self.finished = self.failed = True
        step = Step(None, error=as_exception(error, "a function that this request called"))
        # The failed object may fail again when its state is read.
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
                self._forced.extend(constraint.forced_tokens())
        self.token_ids.append(token)
        self._unread += 1
        answer = self.generation.answer
        thought, text, stopped, thinking = "", "", False, False
        if reason == "stop":
            thought, text = answer.close(token)
        elif reason != "eos":
            thinking = answer.thinking
            thought, text, stopped = answer.push(token)
            thinking = thinking or answer.thinking
        if stopped:
            reason = "stop"
        elif reason is None and len(self.token_ids) >= self._end:
            reason = "length"
        self.finished = reason is not None
        step = Step(token, text, thought, reason, logprob, forced, thinking)
        return self._last(step) if self.finished else step

    def _cancel(self) -> Step:
        self.finished = True
        return self._last(Step(None, finish_reason="cancelled"))

    def _last(self, step: Step) -> Step:
        """Complete the last step: add the held text, and check the grammar."""
        answer, constraint = self.generation.answer, self.generation.constraint
        reason = step.finish_reason
        # Answers under a grammar have complete characters only, also if they are cut short.
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
