"""Prompt lookup: guess the next tokens from an earlier place where the last few stood (arXiv 2304.04487).

Answers that repeat what they were asked (corrected JSON, columns of a schema) are guessed well. One pass checks the
whole guess, and only tokens that would have been chosen anyway are kept, so the answer does not change.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_NGRAMS = (3, 2)  # tokens that must agree, the longer run first
_SIZES = (12, 8, 4, 2)  # tokens guessed at once
_TOKEN_COST = 0.12  # of a pass over one token, what each further one adds
_MEMORY = 0.8  # of the estimate, what a new observation leaves
_PAUSE = 12  # tokens between two guesses that are not expected to pay


class PromptLookup:
    """Guesses for one sequence, as many tokens at once as have been paying.

    Args:
        token_ids: The prompt.
    """

    def __init__(self, token_ids: Sequence[int]):
        self._places: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._rate = 0.6  # share of guessed tokens that were right, to begin with a guess
        self._waited = 0
        self.accepted = 0
        self._index(token_ids)

    def guess(self, token_ids: Sequence[int], room: int) -> list[int]:
        """Return the tokens that may follow, at most `room`; none where nothing is known or it does not pay.

        Args:
            token_ids: Prompt and answer so far.
            room: Most tokens to guess.
        """
        size = min(self._size(), room)
        guess: list[int] = []
        if size > 0:
            for count in _NGRAMS:
                place = self._places.get(tuple(token_ids[-count:]))
                if place is not None:
                    guess = list(token_ids[place : place + size])
                    break
        self._index(token_ids)
        return guess

    def record(self, guessed: int, accepted: int) -> None:
        """Learn from a guess: how many of its tokens were right."""
        self.accepted += accepted
        if guessed:
            # A guess is right up to a place: that many successes, and a failure unless all were right.
            tried = min(accepted + 1, guessed)
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * accepted / tried

    def _size(self) -> int:
        """Return the size with the most tokens expected per cost; 0 for one at a time."""
        gain = {
            size: (sum(self._rate**i for i in range(size + 1))) / (1 + _TOKEN_COST * size) for size in _SIZES
        }
        best = max(_SIZES, key=gain.__getitem__)
        if gain[best] > 1:
            return best
        self._waited += 1
        if self._waited >= _PAUSE:
            self._waited = 0
            return _SIZES[-1]
        return 0

    def _index(self, token_ids: Sequence[int]) -> None:
        """Note where each run of tokens was followed last; the run at the very end has nothing after it yet."""
        for end in range(max(self._seen, 1), len(token_ids)):
            for count in _NGRAMS:
                if end >= count:
                    self._places[tuple(token_ids[end - count : end])] = end
        self._seen = max(self._seen, len(token_ids))
