"""Applies a grammar after the think block of an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from hivellm_ort.grammar.constraint import Constraint, FloatArray

__all__ = ["AfterThinking"]

IntArray = npt.NDArray[np.int64]


class _Phase(Enum):
    START = auto()  # a think block may begin, or the answer
    BLOCK = auto()
    GAP = auto()  # between the block and the answer
    ANSWER = auto()


class AfterThinking:
    r"""A `Constraint` that starts after the think block. In the block it forbids end tokens and a spelled `</think>`.

    Args:
        constraint: New; the grammar of the answer.
        open_id: The token `<think>`; None if the prompt has opened the block.
        close_id: The token `</think>`.
        gap: Tokens forced after it, such as those of `\n\n`, as in the training data of the models.
        end_token_ids: Tokens that end an answer.
        forbid_spelled_tag: Edits logits, float32 [vocab], after accepted tokens, int64 [n]. It forbids other tokens
            that complete the text `</think>`: the text of the answer would begin there, outside the grammar.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        open_id: int | None,
        close_id: int,
        gap: Sequence[int],
        end_token_ids: Collection[int],
        forbid_spelled_tag: Callable[[IntArray, FloatArray], None],
    ) -> None:
        self._inner = constraint
        self._open_id = open_id
        self._close_id = close_id
        self._gap = list(gap)
        self._ends = np.array(sorted(end_token_ids), np.int64)
        self._forbid_spelled_tag = forbid_spelled_tag
        self._accepted: list[int] = []
        self._phases = [
            _Phase.BLOCK if open_id is None else _Phase.START
        ]  # before each accepted token, and now

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._phases[-1] in (_Phase.START, _Phase.ANSWER) and self._inner.complete

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return self._phases[-1] is _Phase.ANSWER and self._inner.finished

    def apply(self, logits: FloatArray) -> FloatArray:
        """See `Constraint`."""
        match self._phases[-1]:
            case _Phase.ANSWER:
                return self._inner.apply(logits)
            case _Phase.START:
                allowed = self._inner.apply(logits)
                allowed[self._open_id] = logits[self._open_id]
            case _Phase.BLOCK:
                allowed = logits.copy()
                allowed[self._ends[self._ends < logits.size]] = -np.inf
                self._forbid_spelled_tag(np.array(self._accepted, np.int64), allowed)
            case _Phase.GAP:
                allowed = np.full_like(logits, -np.inf)
                allowed[self._gap_left()[0]] = 0
        return allowed

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        following = phase = self._phases[-1]
        if phase is _Phase.START and token_id == self._open_id:
            following = _Phase.BLOCK
        elif phase is _Phase.BLOCK:
            if token_id == self._close_id:
                following = _Phase.GAP if self._gap else _Phase.ANSWER
        elif phase is _Phase.GAP:
            following = _Phase.GAP if len(self._gap_left()) > 1 else _Phase.ANSWER
        else:
            self._inner.accept(token_id)
            following = _Phase.ANSWER
        self._phases.append(following)
        self._accepted.append(token_id)

    def forced_tokens(self) -> list[int]:
        """See `Constraint`."""
        match self._phases[-1]:
            case _Phase.ANSWER:
                return self._inner.forced_tokens()
            case _Phase.GAP:
                return [*self._gap_left(), *self._inner.forced_tokens()]
        return []

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """See `Constraint`."""
        phase = self._phases[-1]
        opens = phase is _Phase.START and bool(token_ids) and token_ids[0] == self._open_id
        if phase is _Phase.BLOCK or opens:
            stops = (i for i, token in enumerate(token_ids) if token == self._close_id or token in self._ends)
            first = next(stops, len(token_ids))
            return first + (first < len(token_ids) and token_ids[first] == self._close_id)
        return 0 if phase is _Phase.GAP else self._inner.validate_tokens(token_ids)

    def rollback(self, count: int) -> None:
        """See `Constraint`."""
        for _ in range(count):
            was = self._phases.pop()
            self._accepted.pop()
            if was is _Phase.ANSWER and self._phases[-1] in (_Phase.START, _Phase.ANSWER):
                self._inner.rollback(1)

    def _gap_left(self) -> list[int]:
        # The phases end with one GAP for each accepted gap token, and one for the next.
        come = next(i for i, phase in enumerate(reversed(self._phases)) if phase is not _Phase.GAP)
        return self._gap[come - 1 :]
