"""Writes sets of values as a JSON schema in the dialect of llguidance."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from typing import Any

from hivellm_ort.grammar.schema.graph import Graph
from hivellm_ort.grammar.schema.numbers import as_json, is_large
from hivellm_ort.grammar.schema.patterns import all_but
from hivellm_ort.grammar.schema.shapes import (
    ANY,
    Array,
    Boolean,
    Conjunction,
    Null,
    Number,
    Object,
    Shape,
    String,
)

__all__ = ["JsonWriter", "needs_text"]

_DEEPEST = 20


def needs_text(shape: Shape) -> bool:
    """Return whether numbers must be described by digits: they are beyond a double, or some are excluded."""
    if not isinstance(shape, Number):
        return False
    if shape.values is not None:
        return any(is_large(value) for value in shape.values)
    return (
        bool(shape.excluded)
        or shape.fraction
        or (shape.integer and (is_large(shape.low) or is_large(shape.high)))
    )


class JsonWriter:
    """Writes parts of a schema.

    Args:
        graph: The graph of the schema.

    Attributes:
        repeats: Whether a written object allows unlisted keys.
    """

    def __init__(self, graph: Graph) -> None:
        self.repeats = False
        self._graph = graph
        self._names: dict[Conjunction, str] = {}
        self._definitions: dict[str, Any] = {}

    def document(self, conjunction: Conjunction, shapes: tuple[Shape, ...] | None = None) -> dict[str, Any]:
        """Return a complete schema of a part, or of some of its shapes."""
        self._names, self._definitions = {}, {}
        written = self._shapes(conjunction, self._graph.shapes[conjunction] if shapes is None else shapes, 0)
        schema = dict(written) if isinstance(written, dict) else {} if written else {"enum": []}
        if self._definitions:
            schema["$defs"] = self._definitions
        return schema

    def _part(self, conjunction: Conjunction, depth: int) -> Any:
        shapes = self._graph.shapes[conjunction]
        if conjunction not in self._names and depth < _DEEPEST and self._graph.uses[conjunction] == 1:
            return self._shapes(conjunction, shapes, depth)
        if not any(isinstance(shape, Object | Array) for shape in shapes) or not conjunction:
            return self._shapes(conjunction, shapes, depth)
        if conjunction not in self._names:
            name = self._names[conjunction] = f"d{len(self._names)}"
            self._definitions[name] = None
            self._definitions[name] = self._shapes(conjunction, shapes, 0)
        return {"$ref": f"#/$defs/{self._names[conjunction]}"}

    def _shapes(self, conjunction: Conjunction, shapes: tuple[Shape, ...], depth: int) -> Any:
        if set(shapes) == set(ANY):
            return True
        options = [one for shape in shapes for one in self._shape(conjunction, shape, depth)]
        if len(options) == 1:
            return options[0]
        return {"anyOf": options} if options else False

    def _shape(self, conjunction: Conjunction, shape: Shape, depth: int) -> list[Any]:
        match shape:
            case Null():
                return [{"type": "null"}]
            case Boolean():
                return [
                    {"type": "boolean"} if len(shape.values) == 2 else {"const": next(iter(shape.values))}
                ]
            case Number():
                return [self._number(conjunction, shape)]
            case String():
                return [_string(shape)]
            case Array():
                return [self._array(shape, depth)]
            case Object():
                return [
                    self._object(one, depth)
                    for one in self._graph.variants(conjunction, shape, natively=True)
                ]

    def _number(self, conjunction: Conjunction, shape: Number) -> dict[str, Any]:
        if shape.values is not None:
            return {"enum": [as_json(value) for value in shape.values]}
        written: dict[str, Any] = {"type": "integer" if shape.integer else "number"}
        for bound, is_open, keyword in (
            (shape.low, shape.low_open, "minimum"),
            (shape.high, shape.high_open, "maximum"),
        ):
            if is_large(bound):
                self._graph.reader.refuse(
                    conjunction[0],
                    keyword,
                    "beyond 2^53 only bounds of integers can be enforced; give a smaller one",
                )
            elif bound is not None:
                written[f"exclusive{keyword.capitalize()}" if is_open else keyword] = as_json(bound)
        if shape.multiples:
            step = _common_multiple(shape.multiples)
            if step.numerator >= 2**32:
                self._graph.reader.refuse(conjunction[0], "multipleOf", "such large steps cannot be enforced")
            else:
                written["multipleOf"] = as_json(step)
        return written

    def _array(self, shape: Array, depth: int) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "array"}
        if shape.prefix:
            written["prefixItems"] = [self._part(part, depth + 1) for part in shape.prefix]
        if shape.rest:
            written["items"] = self._part(shape.rest, depth + 1)
        if shape.least:
            written["minItems"] = shape.least
        if shape.most is not None:
            written["maxItems"] = shape.most
        return written

    def _object(self, shape: Object, depth: int) -> dict[str, Any]:
        graph = self._graph
        written: dict[str, Any] = {"type": "object"}
        is_open = graph.exists(shape.rest) or any(graph.exists(part) for _, part in shape.patterns)
        properties = {
            name: self._part(part, depth + 1)
            for name, part in shape.properties
            if is_open or graph.exists(part)
        }
        if properties:
            written["properties"] = properties
            self.repeats = self.repeats or is_open
        if shape.patterns:
            written["patternProperties"] = {
                pattern: self._part(part, depth + 1) for pattern, part in shape.patterns
            }
        if shape.rest:
            written["additionalProperties"] = self._part(shape.rest, depth + 1)
        if shape.required:
            written["required"] = list(shape.required)
        # Here they count the properties besides the required ones.
        if shape.least:
            written["minProperties"] = shape.least + len(shape.required)
        if shape.most is not None:
            written["maxProperties"] = shape.most + len(shape.required)
        return written


def _string(shape: String) -> dict[str, Any]:
    if shape.values is not None:
        return {"enum": list(shape.values)}
    written: dict[str, Any] = {"type": "string"}
    if shape.least:
        written["minLength"] = shape.least
    if shape.most is not None:
        written["maxLength"] = shape.most
    parts: list[dict[str, Any]] = [{"pattern": pattern} for pattern in sorted(shape.patterns)]
    parts += [{"format": name} for name in sorted(shape.formats)]
    if shape.excluded:
        parts.append({"pattern": all_but(sorted(shape.excluded))})
    if len(parts) == 1:
        return written | parts[0]
    return written | {"allOf": [{"type": "string", **part} for part in parts]} if parts else written


def _common_multiple(steps: frozenset[Fraction]) -> Fraction:
    result = Fraction(1)
    for index, step in enumerate(sorted(steps)):
        result = (
            step
            if not index
            else Fraction(lcm(result.numerator, step.numerator), gcd(result.denominator, step.denominator))
        )
    return result
