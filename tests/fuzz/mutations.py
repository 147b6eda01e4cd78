"""Small changes of an input: of its bytes, of its words, of its JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Mutation", "bytes_changed", "json_changed", "mutated", "value_of", "words_changed"]

Mutation = Callable[[bytes, random.Random], bytes]

_NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
]
_DEEP, _LONG = "@deep@", "@long@"  # written out in the text: a JSON encoder would recurse
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, 1 << 31, 1 << 63, 10**9, 10**40, 10**400, 1e308, 1e-320, -0.0,
    float("nan"), float("inf"), "", " ", "a", "é", "\ud800", "\x1b[31m", "\0", "../x", "a" * 3000, [], {}, [[]],
    [None], {"": None}, ["a", 1, None], {"type": "object"}, _DEEP, _LONG,
]  # fmt: skip


def mutated(data: bytes, rng: random.Random, ways: Sequence[Mutation]) -> bytes:
    """The input after one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(ways)(data, rng)
    return data


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes replaced, left out, put in, repeated, moved, or a number of some width in their place."""
    at = rng.randint(0, len(data))
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 16, 64, 512)))
    match rng.randrange(7):
        case 0:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]
        case 3:
            return data[:at] + data[at:end] * rng.randint(2, 9) + data[end:]
        case 4:
            return data[:at]
        case 5:
            other = rng.randint(0, len(data))
            return data[:other] + data[at:end] + data[other:]
        case _:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            number = (rng.choice(_NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
            return data[:at] + number.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]


def words_changed(words: Sequence[str]) -> Mutation:
    """Changes of a text: words of a dictionary put in, and pieces of the text repeated, moved, left out."""

    def change(data: bytes, rng: random.Random) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        at = rng.randint(0, len(text))
        end = min(len(text), at + rng.choice((1, 2, 3, 5, 8, 20, 100)))
        word = rng.choice(words)
        match rng.randrange(6):
            case 0 | 1:
                text = text[:at] + word + text[at:]
            case 2:
                text = text[:at] + word + text[end:]
            case 3:
                text = text[:at] + text[end:]
            case 4:
                text = text[:at] + text[at:end] * rng.choice((2, 3, 30, 300)) + text[end:]
            case _:
                other = rng.randint(0, len(text))
                text = text[:other] + text[at:end] + text[other:]
        return text.encode("utf-8", "surrogateescape")

    return change


def json_changed(words: Sequence[str]) -> Mutation:
    """Changes of a JSON document: values replaced, moved, wrapped, left out, keys renamed, added, written twice."""

    def change(data: bytes, rng: random.Random) -> bytes:
        try:
            document = json.loads(data)
            places = list(_places(document))
        except (ValueError, RecursionError):
            return bytes_changed(data, rng)
        if not places:
            return _written(value_of(rng, words), rng)
        holder, key = rng.choice(places)
        other, other_key = rng.choice(places)
        match rng.randrange(8):
            case 0 | 1 | 2:
                holder[key] = value_of(rng, words)
            case 3:
                del holder[key]
            case 4:
                holder[key] = json.loads(json.dumps(other[other_key]))
            case 5:
                holder[key] = rng.choice(([holder[key]], {rng.choice(words): holder[key]}))
            case 6 if isinstance(holder, dict):
                holder[rng.choice(words)] = rng.choice((holder[key], value_of(rng, words)))
            case 6:
                holder *= rng.choice((2, 20))
            case _ if isinstance(holder[key], int | float):
                holder[key] = holder[key] * rng.choice((-1, 2, 1000)) + rng.choice(
                    (-1, 0, 1, 0.5 if isinstance(holder[key], float) else 0)
                )
            case _:
                holder[key] = value_of(rng, words)
        return _written(document, rng)

    return change


def value_of(rng: random.Random, words: Sequence[str]) -> Any:
    """A value that a field may not expect."""
    return rng.choice(words) if rng.random() < 0.4 else rng.choice(_VALUES)


def _places(value: Any) -> Any:
    """Each object or list with each of its keys or indices."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(value[key])


def _written(document: Any, rng: random.Random) -> bytes:
    text = json.dumps(document, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.9)
    depth = rng.choice((90, 300, 3000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    text = text.replace(f'"{_DEEP}"', f"{opening * depth}1{closing * depth}")
    text = text.replace(f'"{_LONG}"', f"[{'1,' * 5000}1]")
    if rng.random() < 0.1 and text.count('": '):  # a key comes twice
        start = rng.choice([at for at, char in enumerate(text) if char == "{"])
        key = text[start:].split('"', 2)
        text = f'{text[: start + 1]}"{key[1] if len(key) > 2 else ""}": null, {text[start + 1 :]}'
    return text.encode("utf-8", "surrogatepass")
