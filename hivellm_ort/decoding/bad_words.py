"""Forbids words by their text, in any tokenization and any position."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray, IntArray

__all__ = ["TokenTexts"]

_KEPT = 16  # lists of words that are cached with their tokens


class TokenTexts:
    """Index of a vocabulary by the texts of its tokens.

    Args:
        texts: The UTF-8 bytes that each token adds to an answer, by id; empty for tokens that answers do not show.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts
        order = sorted(range(len(texts)), key=texts.__getitem__)
        self._sorted = [texts[token_id] for token_id in order]
        self._ids = np.array(order, np.int64)
        self._prepared = lru_cache(_KEPT)(self._prepare)

    def forbid(
        self, words: Collection[str], *, prompt_length: int, end_token_ids: Collection[int] = ()
    ) -> Callable[[IntArray, FloatArray], None]:
        """Return a function of token ids and logits that forbids every token that would complete a word.

        Args:
            words: Texts of at least one character.
            prompt_length: Number of prompt tokens. The prompt may contain the words.
            end_token_ids: Never forbidden: their text is not part of an answer.
        """
        whole, rests = self._prepared(tuple(dict.fromkeys(word.encode() for word in words)))
        ends = np.array(sorted(end_token_ids), np.int64)
        whole = np.setdiff1d(whole, ends)
        longest = max(map(len, rests), default=0)
        found: dict[bytes, IntArray] = {}

        def edit(token_ids: IntArray, logits: FloatArray) -> None:
            logits[whole] = -np.inf
            tail, place = b"", token_ids.size
            while place > prompt_length and len(tail) < longest:
                place -= 1
                tail = self._text(int(token_ids[place])) + tail
            for start in range(max(0, len(tail) - longest), len(tail)):
                begun = tail[start:]
                if begun in rests:
                    if begun not in found:
                        found[begun] = np.setdiff1d(
                            np.concatenate([self._beginning(rest) for rest in rests[begun]]), ends
                        )
                    logits[found[begun]] = -np.inf

        return edit

    def _prepare(self, words: tuple[bytes, ...]) -> tuple[IntArray, dict[bytes, list[bytes]]]:
        """Return the tokens that contain a word, and the rest of a word by each of its prefixes."""
        holds = re.compile(b"|".join(map(re.escape, words)) or b"(?!)").search
        whole = np.array([i for i, text in enumerate(self._texts) if holds(text)], np.int64)
        rests: dict[bytes, list[bytes]] = defaultdict(list)
        for word in words:
            for length in range(1, len(word)):
                rests[word[:length]].append(word[length:])
        return whole, dict(rests)

    def _text(self, token_id: int) -> bytes:
        # Padded logits are wider than the vocabulary.
        return self._texts[token_id] if token_id < len(self._texts) else b""

    def _beginning(self, start: bytes) -> IntArray:
        """Return the ids of the tokens whose text begins with `start`."""
        size = len(start)
        low = bisect_left(self._sorted, start)
        high = bisect_right(self._sorted, start, low, key=lambda text: text[:size])
        return self._ids[low:high]
