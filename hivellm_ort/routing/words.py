"""Splits prompts and keywords into words, so that keywords match whole words only.

A prompt is split once. A keyword of n words is looked up in the set of the prompt's n-grams. The time is linear in
prompt and keywords for any manifest.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

__all__ = ["MAX_PHRASE_WORDS", "MAX_SHOWN", "Phrase", "PromptWords", "spaced"]

MAX_PHRASE_WORDS = 16
"""Most words of a phrase; longer ones match nothing."""

MAX_SHOWN = 60
"""Most characters of a manifest's text in a reason or a message."""

# Scripts written without spaces: each character is a word, so that a keyword is found inside a sentence.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
# Accents and vowel signs belong to the letter before them, but `\w` leaves them out.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
# A word, with the ending of names such as `c++` and `c#`, or one other visible character.
_WORD = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])[\w{_MARKS}])+(?:\+\+|#(?!\w))?|[^\w\s]")
_LONGEST_NORMALISED = 64  # normalising a run of n accents takes quadratic time


@dataclass(frozen=True, slots=True)
class Phrase:
    """One or more consecutive words.

    Attributes:
        words: The words, case folded and normalised.
        text: The words, joined by spaces.
    """

    words: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, text: str) -> Phrase | None:
        """Split a text into words; None if it has no words, or more than `MAX_PHRASE_WORDS`."""
        words = tuple(_words(text))
        return cls(words, " ".join(words)) if 0 < len(words) <= MAX_PHRASE_WORDS else None

    def inner(self) -> set[str]:
        """Return the texts of the shorter phrases inside this one."""
        size = len(self.words)
        return {
            " ".join(self.words[start : start + length])
            for length in range(1, size)
            for start in range(size - length + 1)
        }


class PromptWords:
    """The words of a prompt.

    >>> PromptWords("Count them, GROUP  BY city").runs(2) & {"group by", "order by"}
    {'group by'}
    """

    def __init__(self, prompt: str) -> None:
        self._words = _words(prompt)
        self._runs: dict[int, set[str]] = {}

    def runs(self, length: int) -> set[str]:
        """Return the texts of all n-grams of `length` words."""
        if length not in self._runs:
            shifted = (self._words[start:] for start in range(length))
            self._runs[length] = set(map(" ".join, zip(*shifted, strict=False)))
        return self._runs[length]


def spaced(identifier: str) -> str:
    """Return an identifier such as `group_by` or `query-dsl` with spaces in place of hyphens and underscores."""
    return identifier.replace("_", " ").replace("-", " ")


def _words(text: str) -> list[str]:
    words: list[str] = _WORD.findall(text.casefold())
    if text.isascii():
        return words
    return [_normalised(word) for word in words]


def _normalised(word: str) -> str:
    if word.isascii() or len(word) > _LONGEST_NORMALISED:
        return word
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
