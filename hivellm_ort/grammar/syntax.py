"""The syntax tree of a grammar over characters.

Trees can be deep, so nothing here recurses: `fold` walks a tree from its leaves to its root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = [
    "EMPTY",
    "LAST_CODE_POINT",
    "ROOT",
    "CharacterClass",
    "Choice",
    "Literal",
    "Node",
    "Reference",
    "Repeat",
    "Rules",
    "Sequence",
    "TokenReference",
    "fold",
    "names_in",
    "parts_of",
]

ROOT = "root"
LAST_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no character of a text, so that no class holds them

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Literal:
    """A text. An empty literal matches nothing at all."""

    text: str


@dataclass(frozen=True, slots=True)
class CharacterClass:
    """Any one character of a set.

    Attributes:
        ranges: First and last code point of each range, inclusive.
        negated: Whether the set is all characters outside the ranges. Without ranges that is any character.
    """

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return the set as ascending, separate ranges, without negation and surrogates."""
        inside = _merged(self.ranges)
        if self.negated:
            return _complement([*inside, _SURROGATES])
        return _complement([*_complement(inside), _SURROGATES])


@dataclass(frozen=True, slots=True)
class TokenReference:
    """One token of the model's vocabulary.

    Attributes:
        text: The token with its angle brackets, such as `<think>`; None if the id is given.
        id: The token's id; None if the text is given.
        negated: Whether it means every token except this one.
    """

    text: str | None = None
    id: int | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to a rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence of items. Without items it is the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A repetition of an item.

    Attributes:
        item: The repeated item.
        min: Least number of repetitions.
        max: Largest number of repetitions; None for no limit.
    """

    item: Node
    min: int
    max: int | None


Node = Literal | CharacterClass | TokenReference | Reference | Sequence | Choice | Repeat

EMPTY = Sequence(())


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a grammar. Its start rule is `root`.

    Attributes:
        nodes: The syntax tree of each rule, in order.
        lines: The line of each rule's definition, from 1.
    """

    nodes: Mapping[str, Node]
    lines: Mapping[str, int] = field(default_factory=dict)

    def line(self, name: str) -> int:
        """Return the line of the rule's definition; 0 if it is not in the text."""
        return self.lines.get(name, 0)


def parts_of(node: Node) -> tuple[Node, ...]:
    """Return the direct parts of a node."""
    match node:
        case Sequence(items):
            return items
        case Choice(options):
            return options
        case Repeat(item):
            return (item,)
        case _:
            return ()


def fold(
    node: Node, visit: Callable[[Node, list[T]], T], *, whole: Callable[[Node], bool] = lambda _: False
) -> T:
    """Compute a value for a tree from its leaves to its root.

    Args:
        node: The root of the tree.
        visit: Gets a node and the values of its parts, and returns the node's value. Called once per node.
        whole: Returns whether `visit` takes a node without the values of its parts.
    """
    results: list[T] = []
    todo: list[tuple[Node, bool]] = [(node, False)]
    while todo:
        current, ready = todo.pop()
        parts = () if whole(current) else parts_of(current)
        if parts and not ready:
            todo.append((current, True))
            todo.extend((part, False) for part in reversed(parts))
            continue
        start = len(results) - len(parts)
        made = visit(current, results[start:])
        del results[start:]
        results.append(made)
    return results[0]


def names_in(node: Node) -> Iterator[str]:
    """Yield the rule names in a tree from left to right, with repetitions."""
    todo = [node]
    while todo:
        current = todo.pop()
        if isinstance(current, Reference):
            yield current.name
        todo.extend(reversed(parts_of(current)))


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges in ascending order, with overlapping and adjacent ones joined."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _complement(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the code points outside the ranges."""
    outside: list[tuple[int, int]] = []
    start = 0
    for low, high in _merged(ranges):
        if start < low:
            outside.append((start, low - 1))
        start = high + 1
    if start <= LAST_CODE_POINT:
        outside.append((start, LAST_CODE_POINT))
    return tuple(outside)
