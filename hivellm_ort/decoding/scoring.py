"""How likely given answers are, in few forward passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from math import exp, inf, log

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.logprobs import log_normaliser

__all__ = ["AnswerTree", "shares"]

_Tokens = tuple[int, ...]


class AnswerTree:
    """Answers as a tree of tokens: what several of them begin with is read once.

    The model has read the prompt. `scores` reads one path of the tree per pass, from the place where it leaves the
    path before it. The last token of an answer is read only where another answer goes on behind it. Answers of one
    token each take no pass beyond the prompt's.

    Args:
        answers: tokens of each answer, at least one; no two are equal.
        end_token_ids: tokens that end an answer. Where another answer begins with this one, their probability counts.
    """

    def __init__(self, answers: Sequence[Sequence[int]], end_token_ids: Collection[int]):
        self._answers: list[_Tokens] = [tuple(answer) for answer in answers]
        self._ends = sorted(end_token_ids)
        # What is asked of the logits behind each beginning: tokens.
        self._wanted: dict[_Tokens, set[int]] = {}
        for answer in self._answers:
            for place, token in enumerate(answer):
                self._wanted.setdefault(answer[:place], set()).add(token)
        self._begins_another = {answer for answer in self._answers if answer in self._wanted}
        for answer in self._begins_another:
            self._wanted[answer].update(self._ends)
        self._logprobs: dict[tuple[_Tokens, int], float] = {}

    @property
    def paths(self) -> list[_Tokens]:
        """What is read after the prompt, a path per pass, in an order in which neighbours share most."""
        beginnings = sorted(beginning for beginning in self._wanted if beginning)
        return [one for one, after in pairwise([*beginnings, ()]) if after[: len(one)] != one]

    def scores(
        self, logits: FloatArray, read: Callable[[int, Sequence[int]], FloatArray]
    ) -> Iterator[list[float] | None]:
        """Read the paths one by one; None after each but the last, then the log probability of each answer.

        Args:
            logits: float32 [vocab], after the prompt.
            read: go back to so many tokens after the prompt and read further ones, n of them; gives the logits after
                each, float32 [n, vocab].

        Raises:
            InferenceError: logits hold NaN or +inf.
        """
        self._note((), logits)
        before: _Tokens = ()
        for path in self.paths:
            shared = 0
            while shared < min(len(before), len(path)) and before[shared] == path[shared]:
                shared += 1
            for place, row in enumerate(read(shared, path[shared:]), shared + 1):
                self._note(path[:place], row)
            before = path
            yield None
        yield [self._logprob(answer) for answer in self._answers]

    def _note(self, beginning: _Tokens, logits: FloatArray) -> None:
        wanted = self._wanted.get(beginning)
        if wanted:
            normaliser = log_normaliser(logits)
            for token in wanted:
                self._logprobs[beginning, token] = float(logits[token]) - normaliser

    def _logprob(self, answer: _Tokens) -> float:
        total = sum(self._logprobs[answer[:place], token] for place, token in enumerate(answer))
        if answer in self._begins_another:
            total += _log_sum([self._logprobs[answer, token] for token in self._ends])
        return total


def shares(logprobs: Sequence[float]) -> list[float]:
    """The probability of each among all of them; equal ones where none is possible."""
    whole = _log_sum(logprobs)
    if whole == -inf:
        return [1 / len(logprobs)] * len(logprobs)
    return [exp(logprob - whole) for logprob in logprobs]


def _log_sum(logprobs: Sequence[float]) -> float:
    best = max(logprobs, default=-inf)
    if best == -inf:
        return -inf
    return best + log(sum(exp(logprob - best) for logprob in logprobs))
