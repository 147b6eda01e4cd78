"""Rules of keywords that restrict values of one type."""

from __future__ import annotations

from fractions import Fraction

from hivellm_ort.grammar.schema.keywords import FINER, QUIET_FORMATS, RANGES, UUIDS
from hivellm_ort.grammar.schema.operands import count, listed, named, number, patterns_of, sound
from hivellm_ort.grammar.schema.patterns import PatternError
from hivellm_ort.grammar.schema.reader import Reader
from hivellm_ort.grammar.schema.shapes import (
    ANY,
    ENFORCED_FORMATS,
    Array,
    Conjunction,
    Number,
    Object,
    Shapes,
    String,
    Subschema,
    child,
    joined,
    meet,
    only,
)

__all__ = [
    "COUNTS",
    "array_rule",
    "bound_rule",
    "contains_rule",
    "count_rule",
    "format_rule",
    "multiple_rule",
    "names_rule",
    "object_rule",
    "only_annotates",
    "pattern_rule",
    "required_names",
    "required_rule",
    "unevaluated_rule",
    "unique_rule",
]


def object_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `properties`, `patternProperties` and `additionalProperties`."""
    return _object_and(reader, subschema, "additionalProperties")


def _object_and(reader: Reader, subschema: Subschema, others: str) -> Shapes:
    """Return objects by these keywords. `others` is the keyword for all remaining names."""
    schema = subschema.schema
    patterns: list[tuple[str, Conjunction]] = []
    rest = reader.part(subschema, schema.get(others, True))
    for pattern, inner in named(reader, subschema, "patternProperties").items():
        try:
            patterns.append((sound(pattern), reader.part(subschema, inner)))
        except PatternError as error:
            # The names of the others are unknown then too.
            why = f"the pattern {pattern!r:.100} cannot be enforced ({error}); write it without"
            reader.refuse(subschema, "patternProperties", why)
            rest = ()
    matched = Object(patterns=tuple(patterns))
    properties = tuple(
        (name, joined(reader.part(subschema, inner), child(matched, name)))
        for name, inner in named(reader, subschema, "properties").items()
    )
    return only(Object(properties, tuple(patterns), rest))


def unevaluated_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `unevaluatedProperties` and `unevaluatedItems`.

    It is enforced if the evaluated parts are the same for all values.
    """
    schema = subschema.schema
    if schema[keyword] is True:
        return ANY
    if keyword == "unevaluatedItems":
        if not schema.keys() & _IN_PLACE:
            listed_so = isinstance(schema.get("items"), list) and "additionalItems" not in schema
            return ANY if "items" in schema and not listed_so else _array_and(reader, subschema, keyword)
    else:
        evaluated = _evaluated(reader, subschema)
        if evaluated is not None:
            names, patterns, others = evaluated
            if others:
                return ANY
            named_so = tuple((name, ()) for name in names)
            rest = reader.part(subschema, schema[keyword])
            return only(Object(named_so, tuple((pattern, ()) for pattern in patterns), rest))
    beside = ", ".join(sorted(schema.keys() & _IN_PLACE))
    why = f"it cannot be enforced beside {beside}; list what is allowed in one subschema"
    return reader.refuse(subschema, keyword, why)


def _evaluated(reader: Reader, subschema: Subschema) -> tuple[list[str], list[str], bool] | None:
    """Return names and patterns of all evaluated properties, and whether all others are evaluated too.

    None if that depends on the value.
    """
    others = "additionalProperties" in subschema.schema
    names: list[str] = []
    patterns: list[str] = []
    waiting, seen = [subschema], {subschema}
    while waiting:
        one = waiting.pop(0)
        # Other keywords apply to some values only. A name that all of them evaluate is never unevaluated.
        if one.schema.keys() & (_IN_PLACE - {"allOf", "$ref", "not", "contains"}):
            return None
        names += named(reader, one, "properties")
        try:
            patterns += [sound(pattern) for pattern in named(reader, one, "patternProperties")]
        except PatternError:
            return None
        parts = [reader.part(one, inner) for inner in one.schema.get("allOf", ())]
        parts += [(reader.referred(one, one.schema["$ref"]),)] if "$ref" in one.schema else []
        for inner in (inner for part in parts for inner in part):
            if isinstance(inner.schema, dict) and inner not in seen:
                others |= bool(inner.schema.keys() & {"additionalProperties", "unevaluatedProperties"})
                seen.add(inner)
                waiting.append(inner)
    return list(dict.fromkeys(names)), list(dict.fromkeys(patterns)), others


def names_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `propertyNames`."""
    return only(Object(names=reader.part(subschema, subschema.schema[keyword])))


def required_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `required`."""
    return only(Object(required=tuple(required_names(reader, subschema))))


def required_names(reader: Reader, subschema: Subschema) -> list[str]:
    """Return the distinct names of `required`.

    Raises:
        RefusedError: They are not names.
    """
    names = listed(reader, subschema, "required")
    if not all(isinstance(name, str) for name in names):
        raise reader.refusal(subschema, "required", "it must be a list of names")
    return list(dict.fromkeys(names))


def array_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `prefixItems` and `items`, and of their forms before 2020-12."""
    return _array_and(reader, subschema, "items")


def _array_and(reader: Reader, subschema: Subschema, others: str) -> Shapes:
    schema = subschema.schema
    prefix, rest = schema.get("prefixItems", []), schema.get(others, True)
    if isinstance(schema.get("items"), list):  # before 2020-12
        prefix, rest = schema["items"], schema.get("additionalItems" if others == "items" else others, True)
    if not isinstance(prefix, list):
        raise reader.refusal(subschema, "prefixItems", f"{prefix!r:.60} is not a list; give one")
    return only(Array(tuple(reader.part(subschema, item) for item in prefix), reader.part(subschema, rest)))


def contains_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `contains`. It is supported only if it requires no item."""
    least = count(reader, subschema, "minContains") if "minContains" in subschema.schema else 1
    if least == 0 and "maxContains" not in subschema.schema:
        return ANY
    return reader.refuse(
        subschema, "contains", "it cannot be enforced; describe the items by prefixItems and items"
    )


def unique_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `uniqueItems`. It is supported only if it is false or there is at most one item."""
    most = subschema.schema.get("maxItems")
    if subschema.schema[keyword] is False or (type(most) is int and most <= 1):
        return ANY
    return reader.refuse(
        subschema, "uniqueItems", "it cannot be enforced; remove it, and compare the items afterwards"
    )


# Other keywords of a schema that may apply to the same value.
_IN_PLACE = frozenset(
    {
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "if",
        "dependentSchemas",
        "dependencies",
    }
    | {"not", "contains"}
)


def only_annotates(name: str) -> bool:
    """Return whether a format restricts nothing here."""
    return not (name in ENFORCED_FORMATS or name in RANGES or name in UUIDS)


def format_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `format`: formats of llguidance and ranges of integers. Others are annotations."""
    value = subschema.schema[keyword]
    if not isinstance(value, str):
        raise reader.refusal(subschema, "format", f"{value!r:.60} is not a text; give the name of a format")
    if value in ENFORCED_FORMATS:
        return only(String(formats=frozenset({value}), patterns=frozenset(FINER.get(value, ()))))
    if value in UUIDS:
        return only(String(formats=frozenset({"uuid"}), patterns=frozenset({UUIDS[value]})))
    if value in RANGES:
        low, high = RANGES[value]
        return only(Number(low=Fraction(low), high=Fraction(high)))
    if value not in QUIET_FORMATS:
        said = f"the format {value!r} is unknown and has no effect; describe the text by a pattern"
        reader.warn(subschema, "format", said)
    return ANY


def pattern_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `pattern`."""
    patterns = patterns_of(reader, subschema, keyword, subschema.schema[keyword])
    return ANY if patterns is None else only(String(patterns=frozenset(patterns)))


def bound_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of the four bounds, including the booleans of draft 4."""
    found = ANY
    schema = subschema.schema
    for bound, is_low in (("minimum", True), ("maximum", False)):
        open_bound = f"exclusive{bound.capitalize()}"
        if bound in schema:
            found = meet(
                found, _bounded(number(reader, subschema, bound), is_low, schema.get(open_bound) is True)
            )
        if not isinstance(schema.get(open_bound, False), bool):
            found = meet(found, _bounded(number(reader, subschema, open_bound), is_low, True))
    return found


def _bounded(bound: Fraction, is_low: bool, is_open: bool) -> Shapes:
    return only(Number(low=bound, low_open=is_open) if is_low else Number(high=bound, high_open=is_open))


def multiple_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `multipleOf`."""
    step = abs(number(reader, subschema, "multipleOf"))
    # llguidance represents it as a 32-bit integer over a power of ten.
    tenths = next((power for power in range(10) if (step * 10**power).denominator == 1), None)
    if not step or tenths is None or step * 10**tenths >= 2**32 or _halves(float(step)) != step:
        why = "a number of so many digits cannot be enforced; give one with fewer"
        return reader.refuse(subschema, "multipleOf", why)
    return only(Number(multiples=frozenset({step})))


def _halves(step: float) -> Fraction:
    """Return a number as llguidance represents it: it multiplies the double by ten until it is whole."""
    power = 0
    while not step.is_integer() and power < 40:
        step, power = step * 10, power + 1
    return Fraction(int(step), 10**power)


COUNTS: dict[str, tuple[type, str]] = {
    f"{side}{things}": (kind, field)
    for side, field in (("min", "least"), ("max", "most"))
    for things, kind in (("Items", Array), ("Length", String), ("Properties", Object))
}
"""Keywords that bound a number of things: of which values, and as what."""


def count_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of a bound on a count."""
    kind, field = COUNTS[keyword]
    return only(kind(**{field: count(reader, subschema, keyword)}))
