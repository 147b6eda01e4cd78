"""Finds values and faults in a JSON text, by line and column.

Nothing here runs for a valid file. For an invalid one the text is parsed again to find the position.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from hivellm_ort.filenames import shown

__all__ = [
    "MAX_DEPTH",
    "MAX_VALUES",
    "Position",
    "first_fault",
    "locate",
    "number_fault",
    "pointer_of",
    "position_of",
]

MAX_DEPTH = 100
"""Deepest nesting of objects and lists read."""

MAX_VALUES = 100_000
"""Most values in one file, counted over all objects and lists."""

_MAX_DIGITS = 400  # more are beyond a double, and slow to convert
_parse = json.JSONDecoder().raw_decode
_BETWEEN = re.compile(r"[\s,:]*+")
# Matches numbers as the scanner of `json` does. The text after a refused one need not be JSON.
_NUMBER = re.compile(r"NaN|-?Infinity|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?")


class Position(NamedTuple):
    """Line and column of a character, both from 1."""

    line: int
    column: int


class _Value(NamedTuple):
    path: tuple[str, ...]  # keys, and indices as decimal texts
    start: int  # index of the key, or of the value without one
    value: int  # index of the value


def position_of(text: str, offset: int) -> Position:
    """Return line and column of a character, given its index."""
    return Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def pointer_of(path: Sequence[str]) -> str:
    """Return the JSON pointer (RFC 6901) of keys and indices; empty for the whole."""
    return "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in path)


def locate(text: str, pointers: Iterable[str]) -> dict[str, Position]:
    """Find values by their JSON pointers, in one pass.

    Args:
        text: A JSON text that parses.
        pointers: The JSON pointers.

    Returns:
        The position of each value. For a missing value it is that of the nearest object or list above it.
    """
    paths = {pointer: _path(pointer) for pointer in pointers}
    wanted = {path[:length] for path in paths.values() for length in range(len(path) + 1)}
    starts: dict[tuple[str, ...], int] = {}
    for found in _walk(text, wanted):
        if found.path in wanted:
            starts[found.path] = found.value
            if len(starts) == len(wanted):
                break
    return {
        pointer: position_of(
            text, next(starts[path[:end]] for end in range(len(path), -1, -1) if path[:end] in starts)
        )
        for pointer, path in paths.items()
    }


def first_fault(text: str) -> tuple[str, int, str] | None:
    """Find the first repeated key, refused number, or value beyond `MAX_VALUES` or `MAX_DEPTH`.

    Args:
        text: A JSON text that parses up to the fault.

    Returns:
        JSON pointer, index of the character, and what is wrong; or None.
    """
    keys: set[tuple[str, ...]] = set()
    for count, (path, start, value) in enumerate(_walk(text)):
        if count > MAX_VALUES:
            return "", start, f"more than {MAX_VALUES} values; shorten it"
        if start != value:
            if path in keys:
                return pointer_of(path), start, f"the key {shown(path[-1])} comes twice; remove one"
            keys.add(path)
        if len(path) >= MAX_DEPTH and text[value] in "{[":
            return "", value, f"more than {MAX_DEPTH} objects and lists inside each other; flatten them"
        number = _NUMBER.match(text, value)
        if number is not None and (fault := number_fault(number[0])) is not None:
            return pointer_of(path), value, fault
    return None


def number_fault(word: str) -> str | None:
    """Return why a number is refused, or None."""
    digits = word.removeprefix("-")
    if digits in ("NaN", "Infinity"):
        return f"{word} is not a JSON number; write a finite one"
    too_large = len(word) > _MAX_DIGITS if digits.isdigit() else not math.isfinite(float(word))
    return f"the number {shown(word)} is out of range; write one that a double holds" if too_large else None


def _path(pointer: str) -> tuple[str, ...]:
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def _walk(text: str, opened: Container[tuple[str, ...]] | None = None) -> Iterator[_Value]:
    """Yield the values of a JSON text in order.

    Args:
        text: A JSON text that parses as far as it is read.
        opened: Paths of the objects and lists whose values are wanted; None for all.
    """
    path: list[str] = []
    indices: list[int] = []  # next index of each open list; -1 for an object
    at = _after(_BETWEEN, text, 0)
    while at < len(text):
        if text[at] in "}]":
            path.pop()
            indices.pop()
            at = _after(_BETWEEN, text, at + 1)
            continue
        start = at
        if indices and indices[-1] < 0:
            path[-1], at = _parse(text, at)
            at = _after(_BETWEEN, text, at)
        elif indices:
            path[-1] = str(indices[-1])
            indices[-1] += 1
        found = _Value(tuple(path), start, at)
        yield found
        if text[at] in "{[" and (opened is None or found.path in opened):
            path.append("")
            indices.append(0 if text[at] == "[" else -1)
            at += 1
        else:
            _, at = _parse(text, at)
        at = _after(_BETWEEN, text, at)


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
