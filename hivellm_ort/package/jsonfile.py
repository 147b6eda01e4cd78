"""Strict reading of the JSON files of a package, and typed access to their fields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hivellm_ort.errors import ManifestError

__all__ = ["MAX_JSON_BYTES", "Node", "read_json"]

MAX_JSON_BYTES = 4 << 20
"""Largest JSON file read, in bytes."""

_MAX_DIGITS = 400  # more are beyond a double, and slow to convert
_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a UTF-8 JSON file (a byte order mark is fine) that holds one object.

    Raises:
        ManifestError: The file is missing, unreadable, larger than `MAX_JSON_BYTES`, not UTF-8, not JSON
            (NaN, Infinity and numbers beyond a double are not), repeats a key, or holds no object.
    """
    where = path.name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{where}: cannot be read: {error.strerror}; check the package") from error
    if len(data) > MAX_JSON_BYTES:
        raise ManifestError(f"{where}: larger than {MAX_JSON_BYTES >> 20} MiB; shorten it")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{where}: line {error.lineno}, column {error.colno}: {error.msg}; correct the JSON"
        ) from error
    except RecursionError as error:
        raise ManifestError(f"{where}: nested too deeply; flatten it") from error
    except ValueError as error:
        raise ManifestError(f"{where}: {error}; correct the JSON") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: holds {_type_name(value)} where an object is expected")
    return value


class Node:
    """A JSON object read field by field; null counts as absent, and errors name the JSON pointer.

    Args:
        value: The object.
        where: Name of the file, for messages.
        pointer: JSON pointer of the object in the file; empty for the whole.
    """

    def __init__(self, value: Mapping[str, Any], where: str, pointer: str = "") -> None:
        self._value = value
        self._where = where
        self._pointer = pointer

    def fail(self, key: str, fault: str) -> NoReturn:
        """Raise a ManifestError about one field."""
        raise ManifestError(f"{self._where}: {self.pointer(key)}: {fault}")

    def pointer(self, key: str) -> str:
        """JSON pointer of a field."""
        return f"{self._pointer}/{key.replace('~', '~0').replace('/', '~1')}"

    def has(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return self._text(self._value.get(key), self.pointer(key)) if self.has(key) else None

    def required(self, key: str) -> str:
        """A string that is there and not blank.

        Raises:
            ManifestError: The field is missing or blank, or holds something else.
        """
        value = self.text(key)
        if value is None or not value.strip():
            self.fail(key, "missing or empty; set it")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, without its nulls; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return tuple(self._text(value, at) for at, value in self._items(key)) if self.has(key) else None

    def flag(self, key: str) -> bool | None:
        """A boolean; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if not isinstance(value, bool | None):
            self._mistyped(self.pointer(key), "true or false", value)
        return value

    def number(self, key: str) -> float | None:
        """A finite number; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._mistyped(self.pointer(key), "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(key, "the number is out of range; write a finite one")
        return number

    def integer(self, key: str) -> int | None:
        """A whole number, also when written as 12.0; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        number = self.number(key)
        if number is None:
            return None
        if not number.is_integer():
            self.fail(key, f"{number:g} where a whole number is expected")
        return int(self._value[key])

    def child(self, key: str) -> Node | None:
        """An object; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return self._node(self._value.get(key), self.pointer(key)) if self.has(key) else None

    def children(self, key: str) -> tuple[Node, ...]:
        """A list of objects, without its nulls; empty when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return tuple(self._node(value, at) for at, value in self._items(key))

    def entries(self) -> Iterator[tuple[str, Node]]:
        """The fields of an object whose values are all objects.

        Raises:
            ManifestError: A field holds something else.
        """
        for key, value in self._value.items():
            yield key, self._node(value, self.pointer(key))

    def _items(self, key: str) -> Iterator[tuple[str, Any]]:
        values = self._value.get(key)
        if values is None:
            return
        if not isinstance(values, list | tuple):
            self._mistyped(self.pointer(key), "a list", values)
        for index, value in enumerate(values):
            if value is not None:
                yield f"{self.pointer(key)}/{index}", value

    def _text(self, value: object, pointer: str) -> str:
        if not isinstance(value, str):
            self._mistyped(pointer, "a string", value)
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ManifestError(f"{self._where}: {pointer}: half of a surrogate pair; correct the escape")
        return value

    def _node(self, value: object, pointer: str) -> Node:
        if not isinstance(value, Mapping):
            self._mistyped(pointer, "an object", value)
        return Node(value, self._where, pointer)

    def _mistyped(self, pointer: str, expected: str, value: object) -> NoReturn:
        raise ManifestError(f"{self._where}: {pointer}: {_type_name(value)} where {expected} is expected")


def _type_name(value: object) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!a} comes twice in one object")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:80]} is out of range")
    return number


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is out of range")
    return int(digits)
