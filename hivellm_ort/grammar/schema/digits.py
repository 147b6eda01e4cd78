"""Writes schemas with numbers beyond a double: the parts around the numbers in Lark, the rest as JSON schemas."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.schema.graph import Graph
from hivellm_ort.grammar.schema.numbers import range_regex
from hivellm_ort.grammar.schema.reader import children
from hivellm_ort.grammar.schema.shapes import Array, Conjunction, Number, Object, Shape
from hivellm_ort.grammar.schema.writer import JsonWriter, needs_text

__all__ = ["LarkWriter"]

_KEY = r'/"(?:[^"\\\x00-\x1F\x7F]|\\["\\nrbtf])*"/'
# With this number of digits, different numbers are different doubles.
_DECIMAL = r"/-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,6})?/"
_FRACTION = r"/-?(?:0|[1-9][0-9]{0,8})\.[0-9]{0,5}[1-9]/"


class LarkWriter:
    """Writes a schema as a Lark grammar.

    Args:
        graph: The graph of the schema.
        style: llguidance's options for JSON, such as separators.
    """

    def __init__(self, graph: Graph, style: dict[str, Any]) -> None:
        self._graph = graph
        self._style = style
        self._json = JsonWriter(graph)
        self._lines: list[str] = []
        self._leaves: dict[str, str] = {}
        self._rules: dict[Conjunction, str] = {}
        self._count = 0
        self._exact = _reaching(graph)
        self._comma, self._colon = (_separator(style[key]) for key in ("item_separator", "key_separator"))

    @property
    def needed(self) -> bool:
        """Whether the schema has such numbers."""
        return self._graph.root in self._exact

    def grammar(self) -> str:
        """Return the grammar.

        Raises:
            RefusedError: Such a number is in an unsupported position.
        """
        if self._style.get("whitespace_flexible") or self._style.get("whitespace_pattern"):
            self._graph.reader.refuse(
                self._graph.root[0], "x-guidance", "white space is fixed where integers are beyond 2^53"
            )
        self._lines.append(f"start: {self._part(self._graph.root)}")
        return "\n".join(self._lines) + "\n"

    def _part(self, conjunction: Conjunction) -> str:
        """Return the name of the rule of a part."""
        if conjunction not in self._exact:
            return self._leaf(conjunction, self._graph.shapes[conjunction])
        if conjunction not in self._rules:
            name = self._rules[conjunction] = self._new("r")
            plain = tuple(shape for shape in self._graph.shapes[conjunction] if not self._is_exact(shape))
            options = [self._leaf(conjunction, plain)] if plain else []
            for shape in self._graph.shapes[conjunction]:
                if self._is_exact(shape):
                    options += self._shape(conjunction, shape)
            if not options:
                raise GrammarError(
                    "no value satisfies a part of the schema that has integers beyond 2^53; change it"
                )
            self._lines.append(f"{name}: {' | '.join(options)}")
        return self._rules[conjunction]

    def _leaf(self, conjunction: Conjunction, shapes: tuple[Shape, ...]) -> str:
        text = json.dumps(self._json.document(conjunction, shapes) | {"x-guidance": self._style})
        if text not in self._leaves:
            self._leaves[text] = self._new("j")
            self._lines.append(f"{self._leaves[text]}: %json {text}")
        return self._leaves[text]

    def _shape(self, conjunction: Conjunction, shape: Shape) -> list[str]:
        match shape:
            case Number():
                return [self._number(conjunction, shape)]
            case Array():
                return [self._array(shape)]
            case Object():
                variants = self._graph.variants(conjunction, shape, natively=False)
                return [self._object(conjunction, one) for one in variants]
            case _:
                raise AssertionError(shape)

    def _number(self, conjunction: Conjunction, shape: Number) -> str:
        name = self._new("N")
        if shape.values is not None:
            self._lines.append(f"{name}: {' | '.join(_quoted(_digits(value)) for value in shape.values)}")
            return name
        bounded = shape.low is not None or shape.high is not None
        if shape.multiples or (bounded and not shape.integer):
            self._graph.reader.refuse(
                conjunction[0], "multipleOf" if shape.multiples else "minimum",
                "it cannot be enforced beside integers beyond 2^53, or beside numbers that are left out",
            )  # fmt: skip
        if shape.integer:
            body = f"/{range_regex(*_whole_bounds(shape))}/"
        else:
            body = _FRACTION if shape.fraction else _DECIMAL
        for value in sorted(shape.excluded):
            digits = _digits(value).replace(".", "\\.").removeprefix("-" if not value else "")
            fraction = "0*" if "." in digits else r"(?:\.0+)?"
            body += f" & ~/{'-?' if not value else ''}{digits}{fraction}/"
        self._lines.append(f"{name}: {body}")
        return name

    def _array(self, shape: Array) -> str:
        graph = self._graph
        items = [self._part(part) if graph.exists(part) else None for part in shape.prefix]
        rest = self._part(shape.rest) if graph.exists(shape.rest) else None
        if None in items:
            items, rest = items[: items.index(None)], None
        if shape.most is not None:
            items = items[: shape.most]
        least, most = (
            max(0, shape.least - len(items)),
            None if shape.most is None else shape.most - len(items),
        )
        tail = ""
        if rest and most != 0:
            first = 0 if items else 1  # the first item has no comma before it
            bounds = f"{{{max(0, least - first)},{'' if most is None else most - first}}}"
            tail = f"{rest if first else ''} ({self._comma} {rest}){bounds}"
            if first and not least:
                tail = f"({tail})?"
        for index in range(len(items) - 1, -1, -1):
            tail = f"{self._comma if index else ''} {items[index]} {tail}"
            if index >= shape.least:
                tail = f"({tail})?"
        return f'"[" {tail} "]"'

    def _object(self, conjunction: Conjunction, shape: Object) -> str:
        graph = self._graph
        if any(graph.exists(part) for _, part in shape.patterns):
            why = "it cannot be enforced beside integers beyond 2^53; list the names"
            graph.reader.refuse(conjunction[0], "patternProperties", why)
        items = [
            (f"{_quoted(_name(name))} {self._colon} {self._part(part)}", name in shape.required)
            for name, part in shape.properties
            if graph.exists(part)
        ]
        if graph.exists(shape.rest) and shape.most != 0:
            taken = " | ".join(_quoted(_name(name)) for name, _ in shape.properties)
            key = self._new("K")
            self._lines.append(f"{key}: {_KEY}{f' & ~({taken})' if taken else ''}")
            item = f"{key} {self._colon} {self._part(shape.rest)}"
            more = "*" if shape.most is None else f"{{0,{shape.most - 1}}}"
            items.append((f"{item} ({self._comma} {item}){more}", shape.least > 0))
        # The remaining members, after some and after none.
        after = before = '""'
        for item, is_required in reversed(items):
            tail, name = f"{self._comma} {item} {after}", self._new("m")
            head = f"{item} {after}"
            self._lines.append(f"{name}: {tail}{'' if is_required else f' | {after}'}")
            first = self._new("m")
            self._lines.append(f"{first}: {head}{'' if is_required else f' | {before}'}")
            after, before = name, first
        return f'"{{" {before} "}}"'

    def _is_exact(self, shape: Shape) -> bool:
        return needs_text(shape) or any(inner in self._exact for inner in children(shape))

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


def _reaching(graph: Graph) -> set[Conjunction]:
    """Return the parts that contain such numbers."""
    found = {part for part, shapes in graph.shapes.items() if any(needs_text(shape) for shape in shapes)}
    grown = bool(found)
    while grown:
        more = {
            part
            for part, shapes in graph.shapes.items()
            if part not in found and any(inner in found for shape in shapes for inner in children(shape))
        }
        found |= more
        grown = bool(more)
    return found


def _whole_bounds(shape: Number) -> tuple[int | None, int | None]:
    """Return the least and the greatest integer between the bounds."""
    low, high = shape.low, shape.high
    return (
        None if low is None else math.floor(low) + 1 if shape.low_open else math.ceil(low),
        None if high is None else math.ceil(high) - 1 if shape.high_open else math.floor(high),
    )


def _digits(value: Fraction) -> str:
    """Return a number as JSON writes it, without an exponent."""
    if value.denominator == 1:
        return str(value.numerator)
    digits = next(power for power in range(1, 1100) if (value * 10**power).denominator == 1)
    whole, rest = divmod(abs(value.numerator) * 10**digits // value.denominator, 10**digits)
    return f"{'-' if value < 0 else ''}{whole}.{rest:0{digits}}"


def _name(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _separator(pattern: str) -> str:
    return _quoted(pattern) if pattern.strip(" ,:") == "" else "/" + pattern.replace("/", "\\/") + "/"
