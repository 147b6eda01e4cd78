"""Log probabilities: of a chosen token, of the best ones, and of given answers in few forward passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise, takewhile
from math import exp, inf, log

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.selection import block_sums, require_finite, top_k
from hivellm_ort.result import TokenLogprob

__all__ = ["AnswerTree", "log_normaliser", "shares", "token_logprob"]

_Tokens = tuple[int, ...]


def token_logprob(logits: FloatArray, token_id: int, count: int) -> TokenLogprob:
    """Return the log probability of a token and those of the best tokens.

    Pass the model's own logits, before processors and temperature, for probabilities of the model itself.

    Args:
        logits: float32 [vocab]; -inf for an impossible token.
        token_id: The chosen token.
        count: Number of the best tokens to return; fewer if fewer are possible.

    Raises:
        InferenceError: The logits hold NaN or +inf, or are all -inf.
    """
    log_sum = log_normaliser(logits)
    top = []
    if count:
        places = top_k(logits, count)  # may have more than `count`, if the last ones are equal
        order = np.argsort(-logits[places], kind="stable")[:count]
        top = [(int(place), float(logits[place]) - log_sum) for place in places[order]]
    return TokenLogprob(token_id, float(logits[token_id]) - log_sum, tuple(top))


def log_normaliser(logits: FloatArray) -> float:
    """Return the logarithm of the sum of exponentials of logits, float32 [vocab].

    A logit minus this value is the log probability of its token.

    Raises:
        InferenceError: The logits hold NaN or +inf, or are all -inf.
    """
    best = logits.max()
    require_finite(best)
    with np.errstate(under="ignore"):
        return float(best) + log(block_sums(np.exp(logits - best)).sum())


class AnswerTree:
    """Answers as a tree of tokens. Shared prefixes are computed once.

    After the prompt, each pass computes one path of the tree, from the point where it leaves the previous path. The
    last token of an answer is computed only if another answer continues after it. Answers of one token need no pass.

    Args:
        answers: Tokens of each answer, at least one; no two are equal.
        end_token_ids: Tokens that end an answer. Their probability counts if another answer begins with this one.
    """

    def __init__(self, answers: Sequence[Sequence[int]], end_token_ids: Collection[int]):
        self._answers: list[_Tokens] = [tuple(answer) for answer in answers]
        self._ends = sorted(end_token_ids)
        # The tokens whose probability is needed, by the prefix before them.
        self._wanted: dict[_Tokens, set[int]] = {}
        for answer in self._answers:
            for place, token in enumerate(answer):
                self._wanted.setdefault(answer[:place], set()).add(token)
        self._begins_another = {answer for answer in self._answers if answer in self._wanted}
        for answer in self._begins_another:
            self._wanted[answer].update(self._ends)
        self._logprobs: dict[tuple[_Tokens, int], float] = {}

    @property
    def passes(self) -> list[tuple[_Tokens, int]]:
        """The path of each pass, and the number of its tokens that the previous pass has computed."""
        beginnings = sorted(beginning for beginning in self._wanted if beginning)
        paths = [one for one, after in pairwise([*beginnings, ()]) if after[: len(one)] != one]
        return [(path, _shared(before, path)) for before, path in pairwise([(), *paths])]

    def note(self, path: _Tokens, first: int, logits: FloatArray) -> None:
        """Record the log probabilities that are needed from logits.

        Args:
            path: The tokens after the prompt.
            first: Number of path tokens before the first row of logits.
            logits: float32 [n, vocab]: after the first `first` tokens of the path, then after each further token.

        Raises:
            InferenceError: Logits hold NaN or +inf.
        """
        for count, row in enumerate(logits, first):
            wanted = self._wanted.get(path[:count])
            if wanted:
                normaliser = log_normaliser(row)
                for token in wanted:
                    self._logprobs[path[:count], token] = float(row[token]) - normaliser

    def scores(self) -> list[float]:
        """Return the log probability of each answer, after all passes."""
        return [self._logprob(answer) for answer in self._answers]

    def _logprob(self, answer: _Tokens) -> float:
        total = sum(self._logprobs[answer[:place], token] for place, token in enumerate(answer))
        if answer in self._begins_another:
            total += _log_sum([self._logprobs[answer, token] for token in self._ends])
        return total


def _shared(one: _Tokens, other: _Tokens) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def shares(logprobs: Sequence[float]) -> list[float]:
    """Return the probabilities relative to each other. They are equal if every answer is impossible."""
    whole = _log_sum(logprobs)
    if whole == -inf:
        return [1 / len(logprobs)] * len(logprobs)
    return [exp(logprob - whole) for logprob in logprobs]


def _log_sum(logprobs: Sequence[float]) -> float:
    best = max(logprobs, default=-inf)
    if best == -inf:
        return -inf
    return best + log(sum(exp(logprob - best) for logprob in logprobs))
