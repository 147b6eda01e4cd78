"""Checked values of keywords."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hivellm_ort.grammar.schema.numbers import exact
from hivellm_ort.grammar.schema.patterns import PatternError, matches, parts, translated, without_look_around
from hivellm_ort.grammar.schema.reader import Reader
from hivellm_ort.grammar.schema.shapes import Subschema

__all__ = ["count", "listed", "named", "number", "patterns_of", "sound"]


def count(reader: Reader, subschema: Subschema, keyword: str) -> int:
    """Return the value of a keyword that is a count.

    Raises:
        RefusedError: It has another type.
    """
    value = subschema.schema[keyword]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**32:
        raise reader.refusal(subschema, keyword, f"{value!r:.60} is not a count; give a whole number from 0")
    return value


def number(reader: Reader, subschema: Subschema, keyword: str) -> Fraction:
    """Return the value of a keyword that is a number.

    Raises:
        RefusedError: It has another type.
    """
    value = subschema.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reader.refusal(subschema, keyword, f"{value!r:.60} is not a number; give one")
    return exact(value)


def listed(reader: Reader, subschema: Subschema, keyword: str) -> list[Any]:
    """Return the value of a keyword that is a list.

    Raises:
        RefusedError: It has another type.
    """
    value = subschema.schema[keyword]
    if not isinstance(value, list):
        raise reader.refusal(subschema, keyword, f"{value!r:.60} is not a list; give one")
    return value


def named(reader: Reader, subschema: Subschema, keyword: str) -> dict[str, Any]:
    """Return the value of a keyword that is an object; empty if the keyword is absent.

    Raises:
        RefusedError: It has another type.
    """
    value = subschema.schema.get(keyword, {})
    if not isinstance(value, dict):
        raise reader.refusal(subschema, keyword, f"{value!r:.60} is not an object; give one")
    return value


def patterns_of(reader: Reader, subschema: Subschema, keyword: str, pattern: Any) -> list[str] | None:
    """Return patterns that together are equal to a pattern and can be enforced; None, with a warning, if impossible.

    Raises:
        RefusedError: It cannot be enforced, and the reader is not lenient.
    """
    if not isinstance(pattern, str):
        raise reader.refusal(subschema, keyword, f"{pattern!r:.60} is not a text; give a regular expression")
    try:
        return [sound(part) for part in parts(pattern)]
    except PatternError as error:
        why = f"the pattern {pattern!r:.100} cannot be enforced ({error}); write it without"
        reader.refuse(subschema, keyword, why)
        try:
            return [sound(without_look_around(pattern))]
        except PatternError:
            return None


def sound(pattern: str) -> str:
    """Return a pattern in llguidance's syntax.

    Raises:
        PatternError: llguidance cannot enforce it.
    """
    written = translated(pattern)
    matches(written, "")
    return written
