"""Strict reading of JSON files and JSON texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hivellm_ort.errors import ManifestError, OptionError
from hivellm_ort.jsonfiles.positions import (
    MAX_DEPTH,
    MAX_VALUES,
    first_fault,
    number_fault,
    position_of,
)
from hivellm_ort.jsonfiles.problems import Problem, error_of
from hivellm_ort.textfile import decode_text

__all__ = [
    "MAX_JSON_BYTES",
    "JsonObject",
    "parse_json",
    "parse_value",
    "read_bytes",
    "read_json",
    "type_name",
]

MAX_JSON_BYTES = 4 << 20
"""Largest JSON file read, in bytes."""

_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    float: "a number",
    int: "a number",
    str: "a string",
}


class JsonObject(dict[str, Any]):
    """The object of a JSON file, with its text.

    Attributes:
        text: The whole file, decoded. Messages take line and column from it.
    """

    def __init__(self, value: Mapping[str, Any], text: str) -> None:
        super().__init__(value)
        self.text = text


def read_json(path: Path) -> JsonObject:
    """Read a JSON file that holds one object, in UTF-8 or the encoding of its byte order mark.

    Raises:
        ManifestError: The file is missing, unreadable, larger than `MAX_JSON_BYTES`, wrongly encoded, not JSON
            (NaN, Infinity and numbers beyond a double are not JSON), repeats a key, is nested deeper than
            `MAX_DEPTH`, holds more than `MAX_VALUES` values, or does not hold an object.
    """
    return parse_json(read_bytes(path), path.name)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a JSON file.

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
    """Parse the bytes of a file as `read_json` does.

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


def parse_value(text: str) -> Any:
    """Parse a JSON text that a user passes, such as a schema or the arguments of a tool call.

    Raises:
        json.JSONDecodeError: It is not JSON.
        OptionError: It holds NaN or Infinity, or is nested too deeply. Both are ValueErrors.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise OptionError("nested too deeply") from error


def type_name(value: object) -> str:
    """Return the JSON type of a value with its article, for messages."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return _TYPE_NAMES.get(type(value), type(value).__name__)


class _RefusedError(ValueError):
    """The text has a fault; `first_fault` finds it again."""


def _fault(where: str, text: str, offset: int, fault: str, pointer: str = "") -> ManifestError:
    return error_of([Problem(where, pointer, fault, position_of(text, offset))])


def _refusal(where: str, text: str) -> ManifestError:
    # Without a fault the caller's own stack was nearly full.
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


def _refuse_constant(word: str) -> NoReturn:
    raise OptionError(f"{word} is not a JSON number")


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
