"""The one decode generator; everything that generates is a wrapper around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.logprobs import TokenLogprob, token_logprob
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.sampler import FloatArray, LogitsProcessor, Sampler
from hivellm_ort.result import FinishReason

__all__ = ["Model", "Request", "Step", "decode"]


class Model(Protocol):
    """What the loop needs of the engine: rows of tokens, each with an adapter of its own."""

    rows: int
    swap_seconds: float

    def start(self, row: int, adapter: Any, capacity: int, token_ids: Sequence[int]) -> int:
        """Begin a row anew, for these tokens; how many of them need not be read again."""

    def append(self, row: int, token_ids: Sequence[int], wanted: int = 1) -> FloatArray:
        """Read tokens into a row; the logits after the last `wanted`, [wanted, vocab], until the next call."""

    def step(self, token_ids: Sequence[int]) -> FloatArray:
        """Read a token into each of the first rows; logits [rows, vocab], until the next call."""

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
        logprobs: how many of the likeliest tokens to give with each token; None for no probabilities at all.
        lookup: fresh; guesses tokens; None for one token at a time.
        cancelled: asked before every step.
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
    logprobs: int | None = None
    lookup: PromptLookup | None = None
    cancelled: Callable[[], bool] = lambda: False
    cached_tokens: int = 0
    swap_seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token_id: the token; None where the request was cancelled before another.
        text: text that is certain now; may be empty, and may hold more than this token's.
        reasoning: the same of a think block before the answer.
        finish_reason: None while the generation goes on.
        logprob: the token's probability, where it was asked for.
    """

    token_id: int | None
    text: str = ""
    reasoning: str = ""
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None


def decode(model: Model, requests: Sequence[Request]) -> Iterator[tuple[int, Step]]:
    """Generate the answers of all requests, as many at a time as the model has rows.

    Yields the number of a request and its next step. The texts of a request's steps joined are its answer; its last
    step, and only it, has a `finish_reason`. Waiting requests take the rows of finished ones, in order.

    Args:
        model: rows of the engine, none of them in use.
        requests: at least one.
    """
    waiting = deque(enumerate(requests))
    rows: list[_Row] = []
    while waiting or rows:
        while waiting and len(rows) < model.rows:
            number, request = waiting.popleft()
            row = _Row(number, request)
            step = row.begin(model, len(rows))
            yield number, step
            if waiting or rows or row.finished:
                # Others may begin alike, and need not wait for the end of this answer.
                model.keep(len(rows), row.token_ids)
            if not row.finished:
                rows.append(row)
        if len(rows) == 1:
            for step in rows[0].advance(model):
                yield rows[0].number, step
        elif rows:
            logits = model.step([row.token_ids[-1] for row in rows])
            for row, scores in zip(rows, logits, strict=True):
                yield row.number, row.accept(scores)
        _remove_finished(model, rows)


def _remove_finished(model: Model, rows: list[_Row]) -> None:
    """Give back the rows of finished requests; the rows in use stay the first ones."""
    for place in reversed(range(len(rows))):
        if rows[place].finished:
            model.keep(place, rows[place].token_ids)
            last = len(rows) - 1
            if place != last:
                model.move(last, place)
                rows[place] = rows[last]
            rows.pop()


class _Row:
    """A request that is being answered. The model has read all of its tokens but the last."""

    def __init__(self, number: int, request: Request):
        self.number = number
        self.request = request
        self.token_ids = list(request.prompt_ids)
        self.finished = False
        self._end = len(request.prompt_ids) + request.max_tokens

    def begin(self, model: Model, place: int) -> Step:
        """Read the prompt, and generate the first token."""
        request = self.request
        if request.cancelled():
            return self._cancel()
        capacity = len(self.token_ids) + min(request.max_tokens, 256)
        request.cached_tokens = model.start(place, request.adapter, capacity, self.token_ids)
        logits = model.append(place, self.token_ids[request.cached_tokens :])
        request.swap_seconds += model.swap_seconds
        return self.accept(logits[0])

    def advance(self, model: Model) -> Iterator[Step]:
        """Read the last token and a guess at what follows, and generate the tokens guessed right, plus one."""
        request, lookup = self.request, self.request.lookup
        if request.cancelled():
            yield self._cancel()
            return
        room = self._end - len(self.token_ids) - 1
        guess = lookup.guess(self.token_ids, room) if lookup is not None else []
        logits = model.append(0, [self.token_ids[-1], *guess], len(guess) + 1)
        right = 0
        for scores, following in zip(logits, [*guess, None], strict=True):
            step = self.accept(scores)
            yield step
            if self.finished or step.token_id != following:
                break
            right += 1
        if lookup is not None and guess:
            model.truncate(0, len(self.token_ids) - 1)
            lookup.record(len(guess), right)

    def accept(self, logits: FloatArray) -> Step:
        """Choose the next token from its logits, float32 [vocab]."""
        request = self.request
        if request.cancelled():
            return self._cancel()
        scores = logits
        if request.process is not None:
            scores = request.process(np.array(self.token_ids, np.int64), logits)
        token = request.sampler(scores)
        self.token_ids.append(token)
        logprob = None if request.logprobs is None else token_logprob(logits, token, request.logprobs)
        ended, full = token in request.eos_token_ids, len(self.token_ids) >= self._end
        thought, text, stopped = ("", "", False) if ended else request.answer.push(token)
        reason: FinishReason | None = "stop" if stopped else None
        if not stopped and (ended or full):
            more_thought, more, stopped = request.answer.flush()
            thought, text = thought + more_thought, text + more
            reason = "stop" if stopped else "eos" if ended else "length"
        self.finished = reason is not None
        return Step(token, text, thought, reason, logprob)

    def _cancel(self) -> Step:
        self.finished = True
        thought, text, _ = self.request.answer.flush()
        return Step(None, text, thought, "cancelled")
