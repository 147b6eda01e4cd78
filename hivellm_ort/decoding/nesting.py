"""Tracks open brackets, literals, comments and code fences in code, JSON or prose."""

from __future__ import annotations

import re
from enum import IntEnum

__all__ = ["Level", "Nesting"]

_COMMENTS = {"--": "\n", "//": "\n", "/*": "*/"}
_PREFIXES = "bBeEfFnNrRuUxX"  # letters that may stand before a quote: E'it\'s', b'...'
_DOLLAR_QUOTE = re.compile(r"\$([^\W\d]\w*)?$")
_TAIL = 64


class Level(IntEnum):
    """What is open; the greatest that applies."""

    NOTHING = 0
    COMMENT = 1
    """One that ends with the line."""
    BRACKET = 2
    """Or a code fence."""
    LITERAL = 3
    """Or a comment of several lines."""


class Nesting:
    """Reads a text character by character, in any language.

    Literals stand between two of `"`, of `'`, of a backtick or of `$tag$`; a `'` right after a word is an apostrophe.
    Comments begin with `--`, `//` or `/*` at the start of a line or after whitespace. Three backticks open a code
    fence, and close it with all that was opened in it, but inside a literal only at the start of a line.

    Args:
        escaping: The quotes in which a backslash escapes the next character.
    """

    def __init__(self, escaping: str) -> None:
        self._escaping = escaping
        self._brackets = 0
        self._outside: int | None = None  # brackets that are open around the code fence
        self._closer = ""  # what ends the literal or comment that is open
        self._escaped = False
        self._backticks = 0  # at the end of the text
        self._before = ""  # the closer before the backticks
        self._blank = True  # only whitespace since the line began
        self._tail = ""  # the last characters since something was opened

    @property
    def level(self) -> Level:
        """What is open now."""
        if self._closer and self._closer != "\n":
            return Level.LITERAL
        if self._brackets or self._outside is not None:
            return Level.BRACKET
        return Level.COMMENT if self._closer else Level.NOTHING

    def push(self, character: str) -> None:
        """Read the next character."""
        before = self._tail
        self._tail = (before + character)[-_TAIL:]
        if character == "`" and not self._escaped:
            self._backticks += 1
            self._read_backtick()
            return
        if self._escaped:
            self._escaped = False
        elif self._closer:
            self._read_inside(character)
        else:
            self._read_outside(character, before)
        self._backticks = 0
        self._blank = character == "\n" or (self._blank and character.isspace())

    def _read_outside(self, character: str, before: str) -> None:
        if character in "([{":
            self._brackets += 1
        elif character in ")]}":
            self._brackets = max(self._brackets - 1, 0)
        elif character == '"' or (character == "'" and not _ends_with_word(before)):
            self._open(character)
        elif before[-1:] + character in _COMMENTS and (before[-2:-1] or " ").isspace():
            self._open(_COMMENTS[before[-1:] + character])
        elif character == "$" and (tag := _DOLLAR_QUOTE.search(before)):
            self._open(tag[0] + "$")

    def _read_inside(self, character: str) -> None:
        if character == "\\" and self._closer in self._escaping:
            self._escaped = True
        elif self._tail.endswith(self._closer):
            self._closer = ""

    def _open(self, closer: str) -> None:
        self._closer = closer
        self._tail = ""  # the opening is not part of the closing: /*/

    def _read_backtick(self) -> None:
        if self._backticks == 1:
            self._before = self._closer
        in_literal = self._before not in ("", "`")
        if self._backticks < 3 and not in_literal:
            self._closer = "" if self._closer else "`"
        if self._backticks != 3:
            return
        if self._outside is not None and (self._blank or not in_literal):
            self._brackets, self._outside, self._closer = self._outside, None, ""
        elif self._outside is None and not in_literal:
            self._brackets, self._outside, self._closer = 0, self._brackets, ""


def _ends_with_word(text: str) -> bool:
    last = text[-1:]
    return last.isalnum() and (last not in _PREFIXES or text[-2:-1].isalnum())
