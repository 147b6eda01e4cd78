"""Complements of JSON schemas, if they can be expressed exactly."""

from __future__ import annotations

from typing import Any

from hivellm_ort.grammar.schema import rules, typed
from hivellm_ort.grammar.schema.keywords import ASSERTIONS
from hivellm_ort.grammar.schema.numbers import exact
from hivellm_ort.grammar.schema.operands import count, listed, named, number
from hivellm_ort.grammar.schema.reader import Reader
from hivellm_ort.grammar.schema.shapes import (
    ANY,
    FALSE,
    Boolean,
    Null,
    Number,
    Object,
    Shapes,
    String,
    Subschema,
    meet,
)

__all__ = ["of"]


def of(reader: Reader, subschema: Subschema) -> Shapes:
    """Return the values of a negated subschema: those that at least one of its keywords forbids.

    Raises:
        RefusedError: The complement of a keyword cannot be enforced.
    """
    found: dict[Any, None] = {}
    for keyword, value in subschema.schema.items():
        if keyword in ASSERTIONS:
            found.update(dict.fromkeys(_of_keyword(reader, subschema, keyword, value)))
    return reader.limited(subschema.pointer, tuple(found))


def _of_keyword(reader: Reader, subschema: Subschema, keyword: str, value: Any) -> Shapes:
    match keyword:
        case "type":
            return _type(reader, subschema)
        case "const":
            return _constants(reader, subschema, keyword, [value])
        case "enum":
            return _constants(reader, subschema, keyword, listed(reader, subschema, keyword))
        case "not":
            return reader.shapes(reader.part(subschema, value))
        case "$ref":
            return reader.shapes((reader.referred(subschema, value),))
        case "allOf":
            parts = [reader.part(subschema, one, negated=True) for one in listed(reader, subschema, keyword)]
            return tuple(dict.fromkeys(shape for part in parts for shape in reader.shapes(part)))
        case "anyOf":
            found = ANY
            for one in listed(reader, subschema, keyword):
                found = meet(found, reader.shapes(reader.part(subschema, one, negated=True)))
            return found
        case "properties":
            inner = named(reader, subschema, keyword)
            return tuple(
                Object(((name, reader.part(subschema, one, negated=True)),), required=(name,))
                for name, one in inner.items()
                if one is not True and one != {}
            )
        case "required":
            return tuple(Object(((name, (FALSE,)),)) for name in typed.required_names(reader, subschema))
        case "minimum":
            is_open = subschema.schema.get("exclusiveMinimum") is not True
            return (Number(high=number(reader, subschema, keyword), high_open=is_open),)
        case "maximum":
            is_open = subschema.schema.get("exclusiveMaximum") is not True
            return (Number(low=number(reader, subschema, keyword), low_open=is_open),)
        case "exclusiveMinimum" | "exclusiveMaximum":
            if isinstance(value, bool):
                return ()
            bound = number(reader, subschema, keyword)
            return (Number(high=bound) if keyword == "exclusiveMinimum" else Number(low=bound),)
        case "format" if isinstance(value, str) and typed.only_annotates(value):
            return ()
        case "additionalProperties" | "items" | "unevaluatedProperties" | "propertyNames" if value in (
            True,
            {},
        ):
            return ()
        case "then" | "else" if "if" not in subschema.schema:
            return ()
        case _ if keyword in typed.COUNTS:
            kind, field = typed.COUNTS[keyword]
            things = count(reader, subschema, keyword)
            if field == "most":
                return (kind(least=things + 1),)
            return (kind(most=things - 1),) if things else ()
        case _:
            raise reader.refusal(subschema, keyword, "its opposite cannot be enforced")


def _type(reader: Reader, subschema: Subschema) -> Shapes:
    named_so = rules.type_rule(reader, subschema, "type")
    kinds = {type(shape) for shape in named_so}
    others: list[Any] = [shape for shape in ANY if type(shape) not in kinds]
    if Number(integer=True) in named_so:
        others.append(Number(fraction=True))
    return tuple(others)


def _constants(reader: Reader, subschema: Subschema, keyword: str, values: list[Any]) -> Shapes:
    if any(isinstance(value, list | dict) for value in values):
        raise reader.refusal(subschema, keyword, "lists and objects cannot be left out; use texts or numbers")
    booleans = frozenset(value for value in values if isinstance(value, bool))
    numbers = frozenset(exact(value) for value in values if type(value) in (int, float))
    replaced: dict[type, list[Any]] = {
        Boolean: [Boolean(frozenset({True, False}) - booleans)] if len(booleans) < 2 else [],
        Number: [Number(excluded=numbers)],
        String: [String(excluded=frozenset(value for value in values if isinstance(value, str)))],
        Null: [] if None in values else [Null()],
    }
    return tuple(one for shape in ANY for one in replaced.get(type(shape), [shape]))
