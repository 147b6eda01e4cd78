"""Typed fields of `decoder.json`, checked against their ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import type_name
from hivellm_ort.printable import escaped

__all__ = [
    "AGAIN",
    "MAX_TEXT",
    "digest",
    "entries",
    "objects",
    "optional_digest",
    "shortened",
    "text",
    "text_fault",
    "unique",
    "whole",
]

AGAIN = "export again"
"""The advice for a field that the exporter never writes like this."""

MAX_TEXT = 200
"""Most characters of a name."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def whole(node: Node, key: str, least: int, most: int) -> int:
    """Return a whole number from `least` to `most`.

    Raises:
        ManifestError: The field is missing, or holds something else.
    """
    value = node.integer(key)
    if value is None:
        node.fail(key, f"missing; {AGAIN}")
    if not least <= value <= most:
        node.fail(key, f"is {shortened(value)}, and must be a whole number from {least} to {most}; {AGAIN}")
    return value


def text(node: Node, key: str) -> str:
    """Return a name of 1 to `MAX_TEXT` printable characters.

    Raises:
        ManifestError: The field is missing, or holds something else.
    """
    value = node.text(key)
    if value is None or not value.strip():
        node.fail(key, f"missing or empty; {AGAIN}")
    if fault := text_fault(value):
        node.fail(key, fault)
    return value


def text_fault(value: str) -> str | None:
    """Return what is wrong with a name, or None."""
    if len(value) > MAX_TEXT:
        return f"has {len(value)} characters, {MAX_TEXT} is the most; {AGAIN}"
    if escaped(value, keep="") != value:
        return f"holds characters that are not printable; {AGAIN}"
    return None


def digest(node: Node, key: str) -> str:
    """Return a SHA-256 in lower-case hex.

    Raises:
        ManifestError: The field is missing, or holds something else.
    """
    value = node.text(key)
    if value is None or _DIGEST.fullmatch(value) is None:
        node.fail(key, f"missing, or not a SHA-256 in lower-case hex; {AGAIN}")
    return value


def optional_digest(node: Node, key: str) -> str | None:
    """Return a SHA-256 in lower-case hex, or None if the field is absent."""
    return digest(node, key) if node.has(key) else None


def objects(node: Node, key: str) -> tuple[Node, ...]:
    """Return a list of objects; empty if the field is absent.

    Raises:
        ManifestError: The field or an item holds something else.
    """
    if None in (node.values(key) or ()):
        node.fail(key, f"null where an object is expected; {AGAIN}")
    return node.children(key)


def entries(node: Node, key: str) -> Iterator[tuple[str, Node]]:
    """Return the fields of an object of objects; nothing if it is absent.

    Raises:
        ManifestError: The field or one of its fields holds something else.
    """
    own = node.child(key)
    if own is None:
        return iter(())
    for name in own.names():
        if not own.has(name):
            own.fail(name, f"null where an object is expected; {AGAIN}")
    return own.entries()


def unique(node: Node, key: str, names: Iterable[str]) -> None:
    """Refuse a list that has a name twice.

    Raises:
        ManifestError: A name comes twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            node.fail(key, f"{name!a} comes twice; {AGAIN}")
        seen.add(name)


def shortened(value: Any) -> str:
    """Return a JSON value for a message, shortened."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else value[:80] + "...")
    if isinstance(value, int | float):
        found = str(value)
        return found if len(found) <= 20 else f"{found[:20]}..."
    return type_name(value)
