"""Strict reading of the JSON files of a package, and typed access to their fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hivellm_ort.errors import ManifestError
from hivellm_ort.jsonfiles.positions import (
    MAX_DEPTH,
    MAX_VALUES,
    first_fault,
    line_and_column,
    number_fault,
    pointer_of,
)
from hivellm_ort.jsonfiles.problems import Problem, Report, error_of
from hivellm_ort.textfile import decode_text

__all__ = [
    "MAX_JSON_BYTES",
    "JsonObject",
    "Node",
    "parse_json",
    "read_bytes",
    "read_json",
    "report_on",
    "type_name",
]

MAX_JSON_BYTES = 4 << 20
"""Largest JSON file read, in bytes."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    float: "a number",
    int: "a number",
    str: "a string",
}


class JsonObject(dict[str, Any]):
    """The object of a JSON file, with the text it came from.

    Attributes:
        text: The whole file, decoded; messages find their line and column in it.
    """

    def __init__(self, value: Mapping[str, Any], text: str) -> None:
        super().__init__(value)
        self.text = text


def read_json(path: Path) -> JsonObject:
    """Read a JSON file that holds one object, in UTF-8 or the encoding of its byte order mark.

    Raises:
        ManifestError: The file is missing, unreadable, larger than `MAX_JSON_BYTES`, not such a text, not JSON
            (NaN, Infinity and numbers beyond a double are not), repeats a key, is nested deeper than
            `MAX_DEPTH`, holds more than `MAX_VALUES` values, or holds no object.
    """
    return parse_json(read_bytes(path), path.name)


def read_bytes(path: Path) -> bytes:
    """The bytes of a JSON file.

    Raises:
        ManifestError: The file is missing, unreadable or larger than `MAX_JSON_BYTES`.
    """
    where = path.name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{where}: cannot be read: {error.strerror}; check the package") from error
    if len(data) > MAX_JSON_BYTES:
        raise ManifestError(f"{where}: larger than {MAX_JSON_BYTES >> 20} MiB; shorten it")
    return data


def parse_json(data: bytes, where: str) -> JsonObject:
    """What `read_json` makes of the bytes of a file.

    Args:
        data: The bytes.
        where: Name of the file, for messages.

    Raises:
        ManifestError: As `read_json`.
    """
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode(error.encoding)
        byte = len(data) - len(error.object) + error.start
        encoding = error.encoding.upper()
        raise _fault(
            where, good, len(good), f"byte {byte} is not {encoding}; save the file as UTF-8"
        ) from error
    if "\0" in text[:2]:
        raise _fault(where, text, 0, "UTF-16 without a byte order mark; save the file as UTF-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_number, parse_float=_number, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        raise _fault(where, text, error.pos, f"{error.msg}; correct the JSON") from error
    except (RecursionError, _RefusedError) as error:
        raise _refusal(where, text) from error
    if not isinstance(value, dict):
        raise _fault(where, text, 0, f"holds {type_name(value)} where an object is expected")
    if _oversize(value):
        raise _refusal(where, text)
    return JsonObject(value, text)


def report_on(value: Mapping[str, Any], where: str, *, lenient: bool = False, cure: str = "") -> Report:
    """An empty report on a JSON object, with places if it is one of `read_json`.

    Args:
        value: The object.
        where: Name of the file, for messages.
        lenient: As for `Report`.
        cure: As for `Report`.
    """
    text = value.text if isinstance(value, JsonObject) else None
    return Report(where, text, lenient=lenient, cure=cure)


class Node:
    """A JSON object read field by field; null counts as absent.

    A value of another type raises a ManifestError that names its JSON pointer. With a lenient report it is
    noted there and counts as absent, except for `required` and `fail`.

    Args:
        value: The object.
        where: Name of the file, for messages, or the report that takes in the faults.
        pointer: JSON pointer of the object in the file; empty for the whole.
    """

    def __init__(self, value: Mapping[str, Any], where: str | Report, pointer: str = "") -> None:
        self._value = value
        self._report = report_on(value, where) if isinstance(where, str) else where
        self._pointer = pointer

    def fail(self, key: str, fault: str) -> NoReturn:
        """Raise a ManifestError about one field, also with a lenient report."""
        self._report.fail(self.pointer(key), fault)

    def note(self, key: str, fault: str) -> None:
        """Report a field that cannot be used.

        Raises:
            ManifestError: The report is not lenient.
        """
        self._report.note(self.pointer(key), fault)

    def pointer(self, key: str) -> str:
        """JSON pointer of a field."""
        return self._pointer + pointer_of([key])

    def has(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return self._text(self._value.get(key), self.pointer(key))

    def required(self, key: str) -> str:
        """A string that is there and not blank.

        Raises:
            ManifestError: The field is missing or blank, or holds something else.
        """
        value = self._value.get(key)
        if value is not None and (fault := _text_fault(value)) is not None:
            self.fail(key, fault)
        if value is None or not value.strip():
            self.fail(key, "missing or empty; set it")
        return str(value)

    def texts(
        self, key: str, fault_of: Callable[[str], str | None] = lambda _: None
    ) -> tuple[str, ...] | None:
        """A list of strings, without its nulls; None when absent.

        Args:
            key: The field.
            fault_of: What is wrong with an item; None where nothing is.

        Raises:
            ManifestError: The field or an item holds something else, or an item has a fault.
        """
        items = self._items(key)
        if items is None:
            return None
        texts = []
        for at, value in items:
            text = self._text(value, at)
            if text is None:
                continue
            if (fault := fault_of(text)) is None:
                texts.append(text)
            else:
                self._report.note(at, fault)
        return tuple(texts)

    def flag(self, key: str) -> bool | None:
        """A boolean; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if isinstance(value, bool | None):
            return value
        self.note(key, _mistyped(value, "true or false"))
        return None

    def number(self, key: str) -> float | None:
        """A finite number; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.note(key, _mistyped(value, "a number"))
            return None
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        self.note(key, "the number is out of range; write a finite one")
        return None

    def integer(self, key: str) -> int | None:
        """A whole number, also when written as 12.0; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if type(value) is int and abs(value) < 1 << 53:
            return value
        number = self.number(key)
        if number is None:
            return None
        if number.is_integer():
            return int(self._value[key])
        self.note(key, f"{number:g} where a whole number is expected")
        return None

    def child(self, key: str) -> Node | None:
        """An object; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        return None if value is None else self._node(value, self.pointer(key))

    def children(self, key: str) -> tuple[Node, ...]:
        """A list of objects, without its nulls; empty when absent.

        Raises:
            ManifestError: The field or an item holds something else.
        """
        nodes = (self._node(value, at) for at, value in self._items(key) or ())
        return tuple(node for node in nodes if node is not None)

    def names(self) -> tuple[str, ...]:
        """The names of all fields, those that are null too."""
        return tuple(self._value)

    def values(self, key: str) -> list[Any] | None:
        """A list as it is; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        values = self._value.get(key)
        if values is None or isinstance(values, list):
            return values
        self.note(key, _mistyped(values, "a list"))
        return None

    def entries(self) -> Iterator[tuple[str, Node]]:
        """The fields of an object whose values are all objects.

        Raises:
            ManifestError: A field holds something else.
        """
        for key, value in self._value.items():
            node = self._node(value, self.pointer(key))
            if node is not None:
                yield key, node

    def _items(self, key: str) -> list[tuple[str, Any]] | None:
        values = self._value.get(key)
        if values is None:
            return None
        if not isinstance(values, list | tuple):
            self.note(key, _mistyped(values, "a list"))
            return None
        start = self.pointer(key)
        return [(f"{start}/{index}", value) for index, value in enumerate(values) if value is not None]

    def _text(self, value: Any, pointer: str) -> str | None:
        if value is None:
            return None
        fault = _text_fault(value)
        if fault is None:
            return str(value)
        self._report.note(pointer, fault)
        return None

    def _node(self, value: object, pointer: str) -> Node | None:
        if isinstance(value, Mapping):
            return Node(value, self._report, pointer)
        self._report.note(pointer, _mistyped(value, "an object"))
        return None


def type_name(value: object) -> str:
    """The JSON type of a value with its article, for messages."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return _TYPE_NAMES.get(type(value), type(value).__name__)


class _RefusedError(ValueError):
    """The text has a fault that `first_fault` finds again."""


def _mistyped(value: object, expected: str) -> str:
    return f"{type_name(value)} where {expected} is expected"


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return _mistyped(value, "a string")
    if _SURROGATE.search(value):
        return "half of a surrogate pair; correct the escape"
    return None


def _fault(where: str, text: str, offset: int, fault: str, pointer: str = "") -> ManifestError:
    return error_of([Problem(where, pointer, fault, line_and_column(text, offset))])


def _refusal(where: str, text: str) -> ManifestError:
    # Nothing is found only where the caller's own stack was nearly full.
    pointer, offset, fault = first_fault(text) or ("", 0, "nested too deeply; flatten it")
    return _fault(where, text, offset, fault, pointer)


def _oversize(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_DEPTH):
        count += sum(len(outer) for outer in level)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return count > MAX_VALUES
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RefusedError
    return found


def _number(word: str) -> float:
    if number_fault(word) is not None:
        raise _RefusedError
    return float(word)


def _whole(word: str) -> int:
    if number_fault(word) is not None:
        raise _RefusedError
    return int(word)
