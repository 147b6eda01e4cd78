"""Reads JSON that arrives in pieces."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["SPACE", "IncompleteTextError", "ObjectEnd", "TextReader", "UnexpectedTextError", "is_object"]

SPACE = " \t\r\n"
_BLANKS = re.compile(f"[{SPACE}]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


class IncompleteTextError(Exception):
    """The text ends too early to be recognised."""


class UnexpectedTextError(Exception):
    """The text differs from the expected one."""


class TextReader:
    """Reads expected parts from the beginning of a text.

    Args:
        text: The text that has arrived.

    Attributes:
        place: The number of characters that were read.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def skip_space(self) -> None:
        """Skip all white space."""
        found = _BLANKS.match(self.text, self.place)
        self.place = found.end() if found is not None else self.place

    def take(self, literal: str) -> bool:
        """Skip white space and read the literal. Returns False if another text comes.

        Raises:
            IncompleteTextError: The text ends within the literal.
        """
        self.skip_space()
        rest = self.text[self.place : self.place + len(literal)]
        if rest == literal:
            self.place += len(literal)
            return True
        if literal.startswith(rest):
            raise IncompleteTextError
        return False

    def need(self, literal: str) -> None:
        """Read the literal as `take` does. Raises `UnexpectedTextError` for another text."""
        if not self.take(literal):
            raise UnexpectedTextError

    def string(self) -> str:
        """Skip white space, read a JSON string and return its value."""
        self.skip_space()
        if not self.text.startswith('"', self.place):
            raise IncompleteTextError if self.place == len(self.text) else UnexpectedTextError
        found = _STRING.match(self.text, self.place)
        if found is None:
            raise IncompleteTextError
        self.place = found.end()
        try:
            value = json.loads(found[0])
        except ValueError as error:
            raise UnexpectedTextError from error
        return str(value)

    def object(self) -> str:
        """Skip white space and read a JSON object. Only its brackets and strings are checked."""
        if self.next != "{":
            raise UnexpectedTextError
        rest = self.text[self.place :]
        end = ObjectEnd().find(rest)
        if end is None:
            raise IncompleteTextError
        self.place += end
        return rest[:end]

    def word(self, pattern: re.Pattern[str]) -> str:
        """Skip white space and read a word that matches a pattern. Another character must follow it."""
        self.skip_space()
        found = pattern.match(self.text, self.place)
        if found is None:
            raise IncompleteTextError if self.place == len(self.text) else UnexpectedTextError
        if found.end() == len(self.text):
            raise IncompleteTextError
        self.place = found.end()
        return found[0]

    @property
    def next(self) -> str:
        """The next character after white space."""
        self.skip_space()
        if self.place == len(self.text):
            raise IncompleteTextError
        return self.text[self.place]


class ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces, by its brackets and strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, piece: str) -> int | None:
        """Return how many characters of the next piece belong to the object; None if it does not end there."""
        place = 0
        while place < len(piece):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            found = (_IN_STRING if self._in_string else _STRUCTURE).search(piece, place)
            if found is None:
                return None
            place = found.end()
            char = found[0]
            if char == '"':
                self._in_string = not self._in_string
            elif char == "\\":
                self._escaped = True
            else:
                self._depth += 1 if char in "{[" else -1
                if self._depth <= 0:
                    return place
        return None


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError, UnexpectedTextError):
        return False


def _refuse(name: str) -> Any:
    raise UnexpectedTextError(f"{name} is not a number of JSON")
