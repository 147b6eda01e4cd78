"""Typed access to the fields of a JSON object."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from hivellm_ort.jsonfiles.positions import pointer_of
from hivellm_ort.jsonfiles.problems import Report
from hivellm_ort.jsonfiles.reading import JsonObject, type_name

__all__ = ["Node", "report_on"]

_SURROGATE = re.compile("[\ud800-\udfff]")


def report_on(value: Mapping[str, Any], where: str, *, lenient: bool = False, cure: str = "") -> Report:
    """Return an empty report on a JSON object. It has positions if `read_json` read the object.

    Args:
        value: The object.
        where: Name of the file, for messages.
        lenient: As for `Report`.
        cure: As for `Report`.
    """
    text = value.text if isinstance(value, JsonObject) else None
    return Report(where, text, lenient=lenient, cure=cure)


class Node:
    """Typed access to the fields of a JSON object. Null counts as absent.

    A value of a wrong type raises a ManifestError that names its JSON pointer. With a lenient report the fault
    is recorded and the value counts as absent, except in `required` and `fail`.

    Args:
        value: The object.
        where: Name of the file, for messages, or the report that collects the faults.
        pointer: JSON pointer of the object in the file; empty for the whole.
    """

    def __init__(self, value: Mapping[str, Any], where: str | Report, pointer: str = "") -> None:
        self._value = value
        self._report = report_on(value, where) if isinstance(where, str) else where
        self._pointer = pointer

    def fail(self, key: str, fault: str) -> NoReturn:
        """Raise a ManifestError about a field, even with a lenient report."""
        self._report.fail(self.pointer(key), fault)

    def note(self, key: str, fault: str) -> None:
        """Report a field that cannot be used.

        Raises:
            ManifestError: The report is not lenient.
        """
        self._report.note(self.pointer(key), fault)

    def pointer(self, key: str) -> str:
        """Return the JSON pointer of a field."""
        return self._pointer + pointer_of([key])

    def has(self, key: str) -> bool:
        """Return whether a field is present and not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str | None:
        """Return a string; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        return self._text(self._value.get(key), self.pointer(key))

    def required(self, key: str) -> str:
        """Return a string that is present and not blank.

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
        """Return a list of strings without its nulls; None when absent.

        Args:
            key: The field.
            fault_of: Returns what is wrong with an item, or None.

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
        """Return a boolean; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        if isinstance(value, bool | None):
            return value
        self.note(key, _mistyped(value, "true or false"))
        return None

    def number(self, key: str) -> float | None:
        """Return a finite number; None when absent.

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
        """Return a whole number, also when written as 12.0; None when absent.

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
        """Return an object; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        value = self._value.get(key)
        return None if value is None else self._node(value, self.pointer(key))

    def children(self, key: str) -> tuple[Node, ...]:
        """Return a list of objects, without its nulls; empty when absent.

        Raises:
            ManifestError: The field or an item holds something else.
        """
        nodes = (self._node(value, at) for at, value in self._items(key) or ())
        return tuple(node for node in nodes if node is not None)

    def names(self) -> tuple[str, ...]:
        """Return the names of all fields, including those that are null."""
        return tuple(self._value)

    def values(self, key: str) -> list[Any] | None:
        """Return a list unchanged; None when absent.

        Raises:
            ManifestError: The field holds something else.
        """
        values = self._value.get(key)
        if values is None or isinstance(values, list):
            return values
        self.note(key, _mistyped(values, "a list"))
        return None

    def entries(self) -> Iterator[tuple[str, Node]]:
        """Yield the fields of an object of objects.

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


def _mistyped(value: object, expected: str) -> str:
    return f"{type_name(value)} where {expected} is expected"


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return _mistyped(value, "a string")
    if _SURROGATE.search(value):
        return "half of a surrogate pair; correct the escape"
    return None
