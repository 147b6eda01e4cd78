"""Sets of JSON values by type, and their intersections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias

from hivellm_ort.grammar.schema.patterns import matches

__all__ = [
    "ANY",
    "ENFORCED_FORMATS",
    "FALSE",
    "Array",
    "Boolean",
    "Conjunction",
    "Null",
    "Number",
    "Object",
    "Shape",
    "Shapes",
    "String",
    "Subschema",
    "child",
    "joined",
    "meet",
    "only",
]

ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""What llguidance holds texts to."""


@dataclass(frozen=True, eq=False)
class Subschema:
    """A part of a schema, or its complement. Equal parts are the same object.

    Attributes:
        schema: The schema of the part.
        resolver: Resolves its references.
        pointer: Its JSON pointer.
        negated: Whether it means the complement.
    """

    schema: Any
    resolver: Any
    pointer: str
    negated: bool = False


Conjunction: TypeAlias = tuple[Subschema, ...]
"""Values that all of these allow; () is any value."""

FALSE = Subschema(False, None, "")
"""No value."""


@dataclass(frozen=True)
class Null:
    """The value null."""


@dataclass(frozen=True)
class Boolean:
    """Truth values."""

    values: frozenset[bool] = frozenset({True, False})


@dataclass(frozen=True)
class Number:
    """Numbers between two bounds, inclusive unless `open`, or only some of `values`.

    `integer` means whole numbers only, `fraction` other numbers only.
    """

    integer: bool = False
    fraction: bool = False
    low: Fraction | None = None
    low_open: bool = False
    high: Fraction | None = None
    high_open: bool = False
    multiples: frozenset[Fraction] = frozenset()
    values: tuple[Fraction, ...] | None = None
    excluded: frozenset[Fraction] = frozenset()

    def holds(self, value: Fraction) -> bool:
        """Return whether a number is in the set, ignoring `values`."""
        return not (
            (self.integer and value.denominator != 1)
            or (self.fraction and value.denominator == 1)
            or (self.low is not None and (value < self.low or (value == self.low and self.low_open)))
            or (self.high is not None and (value > self.high or (value == self.high and self.high_open)))
            or any(value % step for step in self.multiples)
            or value in self.excluded
        )


@dataclass(frozen=True)
class String:
    """Texts of a length in characters that match every pattern and format, or only some of `values`."""

    least: int = 0
    most: int | None = None
    patterns: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    values: tuple[str, ...] | None = None
    excluded: frozenset[str] = frozenset()

    def holds(self, value: str) -> bool:
        """Return whether a text is in the set, ignoring `values`."""
        return (
            self.least <= len(value)
            and (self.most is None or len(value) <= self.most)
            and value not in self.excluded
            and all(matches(pattern, value) for pattern in self.patterns)
            and all(matches(one, value, "format") for one in self.formats)
        )


@dataclass(frozen=True)
class Array:
    """Lists whose first items are in `prefix` and the others in `rest`."""

    prefix: tuple[Conjunction, ...] = ()
    rest: Conjunction = ()
    least: int = 0
    most: int | None = None

    def item(self, index: int) -> Conjunction:
        """Return the conjunction of the item at an index."""
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True)
class Object:
    """Objects: `properties` in the order of the answer, other keys by `patterns`, and all remaining keys by `rest`.

    If `names` is not (), all names must be in it.
    """

    properties: tuple[tuple[str, Conjunction], ...] = ()
    patterns: tuple[tuple[str, Conjunction], ...] = ()
    rest: Conjunction = ()
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    names: Conjunction = ()
    listed: dict[str, Conjunction] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Index the properties by name."""
        object.__setattr__(self, "listed", dict(self.properties))


Shape: TypeAlias = Null | Boolean | Number | String | Array | Object
Shapes: TypeAlias = tuple[Shape, ...]
"""Values of any of these."""

ANY: Shapes = (Object(), Array(), String(), Number(), Boolean(), Null())


def only(*shapes: Shape) -> Shapes:
    """Return the shapes of a keyword that restricts only one type."""
    kinds = {type(shape) for shape in shapes}
    return (*shapes, *(shape for shape in ANY if type(shape) not in kinds))


def joined(one: Conjunction, other: Conjunction) -> Conjunction:
    """Return the conjunction of both."""
    return one if one == other else tuple(dict.fromkeys((*one, *other)))


def child(shape: Object, name: str) -> Conjunction:
    """Return the conjunction of the value of a name."""
    if name in shape.listed:
        return shape.listed[name]
    found = [conjunction for pattern, conjunction in shape.patterns if matches(pattern, name)]
    result = shape.rest if not found else ()
    for conjunction in found:
        result = joined(result, conjunction)
    return result


def meet(ones: Shapes, others: Shapes) -> Shapes:
    """Return the intersection, as far as it can be seen without reading parts."""
    if others is ANY:
        return ones
    if ones is ANY:
        return tuple(shape for shape in dict.fromkeys(others) if not _empty(shape))
    met = (_met(one, other) for one in ones for other in others if type(one) is type(other))
    return tuple(dict.fromkeys(shape for shape in met if not _empty(shape)))


def _met(one: Any, other: Any) -> Shape:
    match one:
        case Boolean():
            return Boolean(one.values & other.values)
        case Number():
            return _numbers(one, other)
        case String():
            return _strings(one, other)
        case Array():
            length = max(len(one.prefix), len(other.prefix))
            return Array(
                tuple(joined(one.item(index), other.item(index)) for index in range(length)),
                joined(one.rest, other.rest),
                max(one.least, other.least),
                _least(one.most, other.most),
            )
        case Object():
            return _objects(one, other)
        case _:
            return Null()


def _numbers(one: Number, other: Number) -> Number:
    low = max(
        ((bound.low, bound.low_open) for bound in (one, other) if bound.low is not None),
        default=(None, False),
    )
    high = min(
        ((bound.high, not bound.high_open) for bound in (one, other) if bound.high is not None),
        default=(None, True),
    )
    both = Number(
        integer=one.integer or other.integer,
        fraction=one.fraction or other.fraction,
        low=low[0],
        low_open=low[1],
        high=high[0],
        high_open=not high[1],
        multiples=one.multiples | other.multiples,
        excluded=one.excluded | other.excluded,
    )
    return replace(both, values=_common(one.values, other.values, both.holds))


def _strings(one: String, other: String) -> String:
    both = String(
        max(one.least, other.least),
        _least(one.most, other.most),
        one.patterns | other.patterns,
        one.formats | other.formats,
        None,
        one.excluded | other.excluded,
    )
    return replace(both, values=_common(one.values, other.values, both.holds))


def _common(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None, holds: Any) -> tuple[Any, ...] | None:
    if one is None and other is None:
        return None
    values: Iterable[Any] = one if one is not None else other or ()
    kept = set(other) if one is not None and other is not None else None
    return tuple(value for value in values if (kept is None or value in kept) and holds(value))


def _objects(one: Object, other: Object) -> Object:
    names = dict.fromkeys((*one.listed, *other.listed))
    return Object(
        tuple((name, joined(child(one, name), child(other, name))) for name in names),
        tuple(
            (pattern, joined(_of_pattern(one, pattern), _of_pattern(other, pattern)))
            for pattern in dict.fromkeys(pattern for pattern, _ in (*one.patterns, *other.patterns))
        ),
        joined(one.rest, other.rest),
        tuple(dict.fromkeys((*one.required, *other.required))),
        max(one.least, other.least),
        _least(one.most, other.most),
        joined(one.names, other.names),
    )


def _of_pattern(shape: Object, pattern: str) -> Conjunction:
    return dict(shape.patterns).get(pattern, shape.rest)


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _empty(shape: Shape) -> bool:
    """Return whether the set is empty, as far as it can be seen without reading parts."""
    match shape:
        case Boolean():
            return not shape.values
        case Number(values=None):
            return _no_number(shape)
        case String(values=None):
            return shape.most is not None and shape.least > shape.most
        case Number() | String():
            return not shape.values
        case Array():
            least = shape.least
            if (shape.most is not None and least > shape.most) or (
                FALSE in shape.rest and least > len(shape.prefix)
            ):
                return True
            return any(FALSE in conjunction for conjunction in shape.prefix[:least])
        case Object():
            least = max(shape.least, len(shape.required))
            if shape.most is not None and least > shape.most:
                return True
            if FALSE in shape.rest and not shape.patterns:
                known = sum(FALSE not in part for _, part in shape.properties)
                if least > known:
                    return True
            return any(FALSE in child(shape, name) for name in shape.required)
        case _:
            return False


def _no_number(shape: Number) -> bool:
    if shape.integer and shape.fraction:
        return True
    if shape.low is None or shape.high is None:
        return False
    if shape.low > shape.high or (shape.low == shape.high and (shape.low_open or shape.high_open)):
        return True
    if shape.low == shape.high:
        return not shape.holds(shape.low)
    return shape.integer and math.ceil(
        shape.low + (shape.low_open and shape.low.denominator == 1)
    ) > math.floor(shape.high - (shape.high_open and shape.high.denominator == 1))
