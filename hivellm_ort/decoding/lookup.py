"""Prompt lookup decoding: guess the next tokens from an earlier occurrence of the last few (arXiv 2304.04487).

It works well for answers that repeat their prompt (corrected JSON, columns of a schema). One pass checks the whole
guess. Only tokens that would be chosen anyway are kept, so the answer does not change.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_NGRAMS = (3, 2)  # sizes of n-grams, longest first
_SIZES = (12, 8, 4, 2)  # tokens guessed at once
_TOKEN_COST = 0.12  # cost of each further token, as a share of a pass over one token
_MEMORY = 0.8  # weight of the old estimate after an observation
_PAUSE = 12  # tokens between two guesses that are not expected to pay


class PromptLookup:
    """Guesses tokens of one sequence. The number of tokens adapts to the success of earlier guesses.

    Args:
        token_ids: The prompt.
    """

    def __init__(self, token_ids: Sequence[int]):
        self._places: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._rate = 0.6  # estimated share of right tokens; the initial value is a guess
        self._waited = 0
        self.accepted = 0
        self._index(token_ids)

    def guess(self, token_ids: Sequence[int], room: int) -> list[int]:
        """Guess the next tokens, at most `room`. Returns none if nothing is known or a guess is not expected to pay.

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
        """Record how many tokens of a guess were right."""
        self.accepted += accepted
        if guessed:
            # A guess has `accepted` right tokens, then a wrong one unless all were right.
            tried = min(accepted + 1, guessed)
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * accepted / tried

    def _size(self) -> int:
        """Return the guess size with the most expected tokens per cost; 0 for no guess."""
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
        """Record the last position after each n-gram. The n-gram at the very end has no next token yet."""
        for end in range(max(self._seen, 1), len(token_ids)):
            for count in _NGRAMS:
                if end >= count:
                    self._places[tuple(token_ids[end - count : end])] = end
        self._seen = max(self._seen, len(token_ids))
