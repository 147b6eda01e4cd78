"""What each keyword of a JSON schema allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import combinations
from typing import Any, TypeAlias

from hivellm_ort.grammar.schema import typed
from hivellm_ort.grammar.schema.numbers import exact
from hivellm_ort.grammar.schema.operands import listed, named
from hivellm_ort.grammar.schema.reader import Reader, RefusedError
from hivellm_ort.grammar.schema.shapes import (
    ANY,
    FALSE,
    Array,
    Boolean,
    Conjunction,
    Null,
    Number,
    Object,
    Shapes,
    String,
    Subschema,
    joined,
    meet,
    only,
)

__all__ = ["of", "type_rule"]

Rule: TypeAlias = Callable[[Reader, Subschema, str], Shapes]

_TYPES: dict[str, Shapes] = {
    "null": (Null(),),
    "boolean": (Boolean(),),
    "integer": (Number(integer=True),),
    "number": (Number(),),
    "string": (String(),),
    "array": (Array(),),
    "object": (Object(),),
}
_MOST_BRANCHES = 300
_TELLING = frozenset({"type", "const", "enum"})


def of(schema: dict[str, Any]) -> Iterator[tuple[str, Rule]]:
    """Yield the keywords of a schema that restrict values, in order, and their rules.

    Keywords that belong together count as one.
    """
    done: set[Rule] = set()
    for keyword in schema:
        rule = _RULES.get(keyword)
        if rule is not None and rule not in done:
            if rule in _TOGETHER:
                done.add(rule)
            yield keyword, rule


def _constant(reader: Reader, subschema: Subschema, value: Any) -> Shapes:
    """Return the shapes of a constant."""
    match value:
        case None:
            return (Null(),)
        case bool():
            return (Boolean(frozenset({value})),)
        case int() | float():
            return (Number(values=(exact(value),)),)
        case str():
            return (String(values=(value,)),)
        case list():
            items = tuple(_constant_part(reader, subschema, item) for item in value)
            return (Array(items, (FALSE,), len(items), len(items)),)
        case _:
            properties = tuple(
                (name, _constant_part(reader, subschema, item)) for name, item in value.items()
            )
            return (Object(properties, (), (FALSE,), tuple(value)),)


def _constant_part(reader: Reader, subschema: Subschema, value: Any) -> Conjunction:
    return reader.made(subschema, f"const {id(subschema.schema)} {value!r}", {"const": value})


def type_rule(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """The rule of `type`."""
    value = subschema.schema[keyword]
    names = value if isinstance(value, list) else [value]
    found: dict[Any, None] = {}
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise reader.refusal(
                subschema, "type", f"there is no type {name!r:.60}; it is one of {', '.join(_TYPES)}"
            )
        if name != "integer" or "number" not in names:
            found.update(dict.fromkeys(_TYPES[name]))
    return tuple(found)


def _const(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    return _constant(reader, subschema, subschema.schema[keyword])


def _enum(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    found: dict[Any, None] = {}
    numbers: dict[Fraction, None] = {}
    texts: dict[str, None] = {}
    for one in listed(reader, subschema, "enum"):
        if isinstance(one, str):
            texts[one] = None
        elif isinstance(one, int | float) and not isinstance(one, bool):
            numbers[exact(one)] = None
        else:
            found.update(dict.fromkeys(_constant(reader, subschema, one)))
    if texts:
        found[String(values=tuple(texts))] = None
    if numbers:
        found[Number(values=tuple(numbers))] = None
    return tuple(found)


def _ref(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    return reader.shapes((reader.referred(subschema, subschema.schema[keyword]),))


def _all_of(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    found = ANY
    for schema in listed(reader, subschema, "allOf"):
        found = reader.limited(subschema.pointer, meet(found, reader.shapes(reader.part(subschema, schema))))
    return found


def _any_of(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    return _union(reader, subschema, _kept(reader, subschema, "anyOf"))


def _one_of(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    branches = _kept(reader, subschema, "oneOf")
    if len(branches) > _MOST_BRANCHES:
        why = f"it has more than {_MOST_BRANCHES} alternatives, too many to compare; use enum or anyOf"
        return meet(reader.refuse(subschema, keyword, why), _union(reader, subschema, branches))
    if not any(reader.possible(joined(one, other)) for one, other in combinations(branches, 2)):
        return _union(reader, subschema, branches)
    tagged = _tagged(reader, subschema, branches)
    if tagged is not None:
        return tagged
    if len(branches) <= 4:
        try:
            return _exactly_one(reader, subschema, listed(reader, subschema, "oneOf"))
        except RefusedError:
            pass
    found = reader.refuse(
        subschema, "oneOf", "its alternatives do not exclude each other for certain; give each a property that is "
        "required and has a constant of its own, or use anyOf"
    )  # fmt: skip
    return meet(found, _union(reader, subschema, branches))


def _kept(reader: Reader, subschema: Subschema, keyword: str) -> list[Conjunction]:
    """Return the alternatives that can be enforced, at least one. The others give warnings."""
    schemas = listed(reader, subschema, keyword)
    if not schemas:
        raise reader.refusal(
            subschema, keyword, "it is empty, and no value satisfies it; give an alternative"
        )
    if reader.lenient:
        return [reader.part(subschema, schema) for schema in schemas]
    kept: list[Conjunction] = []
    refused: dict[int, RefusedError] = {}
    for index, schema in enumerate(schemas):
        warned = dict(reader.warnings)
        try:
            branch = reader.part(subschema, schema)
            reader.check(branch)
            kept.append(branch)
        except RefusedError as error:
            reader.warnings = warned
            refused[index] = error
    # Only null would be left of an optional value.
    if refused and all(reader.shapes(branch) == (Null(),) for branch in kept):
        raise next(iter(refused.values()))
    if keyword == "oneOf":
        # `oneOf` forbids values of two alternatives, so an alternative that is left out must at least differ in type.
        for index in refused:
            if not isinstance(schemas[index], Mapping):
                raise refused[index]
            known = {name: schemas[index][name] for name in _TELLING & schemas[index].keys()}
            kind = reader.made(subschema, f"kind {id(schemas[index])}", known)
            if any(reader.possible(joined(branch, kind)) for branch in kept):
                raise refused[index]
    for index, why in refused.items():
        reader.warn(subschema, f"{keyword}/{index}", f"this alternative is left out. {why}")
    return kept


def _union(reader: Reader, subschema: Subschema, branches: list[Conjunction]) -> Shapes:
    found: dict[Any, None] = {}
    for branch in branches:
        shapes = reader.shapes(branch)
        if shapes is ANY:
            return ANY
        found.update(dict.fromkeys(shapes))
    return tuple(found)


def _tagged(reader: Reader, subschema: Subschema, branches: list[Conjunction]) -> Shapes | None:
    """Return the alternatives, with their discriminating property required, if there is one."""
    shapes = [reader.shapes(branch) for branch in branches]
    if not all(len(found) == 1 and isinstance(found[0], Object) for found in shapes):
        return None
    objects: list[Any] = [found[0] for found in shapes]
    for name in objects[0].listed:
        if all(name in one.listed for one in objects) and not any(
            reader.possible(joined(one.listed[name], other.listed[name]))
            for one, other in combinations(objects, 2)
        ):
            need = (Object(required=(name,)),)
            return tuple(shape for one in objects for shape in meet((one,), need))
    return None


def _exactly_one(reader: Reader, subschema: Subschema, schemas: list[Any]) -> Shapes:
    found: dict[Any, None] = {}
    for index, schema in enumerate(schemas):
        both = reader.part(subschema, schema)
        for other, excluded in enumerate(schemas):
            if other != index:
                both = joined(both, reader.part(subschema, excluded, negated=True))
        reader.check(both)
        found.update(dict.fromkeys(reader.shapes(both)))
    return reader.limited(subschema.pointer, tuple(found))


def _not(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    try:
        excluded = reader.part(subschema, subschema.schema[keyword], negated=True)
        reader.check(excluded)
        return reader.shapes(excluded)
    except RefusedError as error:
        return reader.refuse(
            subschema, "not", f"its opposite cannot be enforced ({error}); say what is allowed instead"
        )


def _if(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    schema = subschema.schema
    if "then" not in schema and "else" not in schema:
        return ANY
    try:
        met = reader.part(subschema, schema[keyword])
        unmet = reader.part(subschema, schema[keyword], negated=True)
        reader.check(met)
        reader.check(unmet)
    except RefusedError as error:
        return reader.refuse(
            subschema,
            "if",
            f"its opposite cannot be enforced ({error}); compare with constants, or use anyOf",
        )
    found: dict[Any, None] = {}
    for condition, consequence in ((met, "then"), (unmet, "else")):
        both = joined(condition, reader.part(subschema, schema.get(consequence, True)))
        found.update(dict.fromkeys(reader.shapes(both)))
    return tuple(found)


def _dependent(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    found = ANY
    for name, needs in named(reader, subschema, keyword).items():
        if isinstance(needs, list) and all(isinstance(need, str) for need in needs):
            then: Shapes = only(Object(required=tuple(dict.fromkeys((name, *needs)))))
        else:
            then = meet(only(Object(required=(name,))), reader.shapes(reader.part(subschema, needs)))
        without = Object(((name, (FALSE,)),))
        present = tuple(shape for shape in then if isinstance(shape, Object))
        others = tuple(shape for shape in ANY if not isinstance(shape, Object))
        found = reader.limited(subschema.pointer, meet(found, (*present, without, *others)))
    return found


def _discriminator(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    """Require the discriminator property, even if it has a default, because readers of the answer need it."""
    value = subschema.schema[keyword]
    name = value.get("propertyName") if isinstance(value, dict) else None
    if not isinstance(name, str) or not subschema.schema.keys() & {"oneOf", "anyOf"}:
        return ANY
    return only(Object(required=(name,)))


def _dynamic(reader: Reader, subschema: Subschema, keyword: str) -> Shapes:
    return reader.refuse(subschema, keyword, "it cannot be followed; use $ref")


_RULES: dict[str, Rule] = {
    "type": type_rule,
    "const": _const,
    "enum": _enum,
    "$ref": _ref,
    "$dynamicRef": _dynamic,
    "$recursiveRef": _dynamic,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "discriminator": _discriminator,
    "properties": typed.object_rule,
    "patternProperties": typed.object_rule,
    "additionalProperties": typed.object_rule,
    "unevaluatedProperties": typed.unevaluated_rule,
    "propertyNames": typed.names_rule,
    "required": typed.required_rule,
    "dependentRequired": _dependent,
    "dependentSchemas": _dependent,
    "dependencies": _dependent,
    "items": typed.array_rule,
    "prefixItems": typed.array_rule,
    "unevaluatedItems": typed.unevaluated_rule,
    "contains": typed.contains_rule,
    "uniqueItems": typed.unique_rule,
    "format": typed.format_rule,
    "pattern": typed.pattern_rule,
    "minimum": typed.bound_rule,
    "maximum": typed.bound_rule,
    "exclusiveMinimum": typed.bound_rule,
    "exclusiveMaximum": typed.bound_rule,
    "multipleOf": typed.multiple_rule,
    **dict.fromkeys(typed.COUNTS, typed.count_rule),
}
_TOGETHER = frozenset({typed.object_rule, typed.array_rule, typed.bound_rule})
