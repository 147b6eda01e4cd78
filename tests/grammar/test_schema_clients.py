"""JSON schemas as the clients of several languages emit them."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import random
import uuid
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from walking import answer, compiled, text_of

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import accepts, check_grammar

SAFE = 9007199254740991
STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
ZOD_INTEGER = {"type": "integer", "minimum": -SAFE, "maximum": SAFE}


def closed(**properties: Any) -> dict[str, Any]:
    """Return an object as Zod and strict OpenAI schemas write it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


EMITTED: dict[str, tuple[Any, list[str], list[str]]] = {
    # Zod 4, z.toJSONSchema
    "zod object": (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | closed(
            i=ZOD_INTEGER,
            l={"type": "number", "const": 5},
            d={"default": "x", "type": "string"},
            e={"type": "string", "enum": ["a", "b"]},
            any={},
        ),
        [f'{{"i": {SAFE}, "l": 5, "d": "x", "e": "a", "any": [null]}}'],
        [f'{{"i": {SAFE + 1}, "l": 5, "d": "x", "e": "a", "any": 1}}', '{"i": 1}'],
    ),
    "zod discriminated union": (
        {
            "oneOf": [
                closed(kind={"type": "string", "const": "cat"}, lives=ZOD_INTEGER),
                closed(kind={"type": "string", "const": "dog"}, good={"type": "boolean"}),
            ]
        },
        ['{"kind": "cat", "lives": 9}', '{"kind": "dog", "good": true}'],
        ['{"kind": "cat", "good": true}', '{"kind": "cow"}'],
    ),
    "zod texts": (
        closed(
            email={
                "type": "string",
                "format": "email",
                "pattern": "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@"
                "([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$",
            },
            time={
                "type": "string",
                "format": "date-time",
                "pattern": "^(?:\\d{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01]))"
                "T(?:(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d+)?(?:Z))$",
            },
            end={"type": "string", "format": "ends_with", "pattern": "^ab.*z$"},
        ),
        ['{"email": "a.b@c.de", "time": "2024-01-31T00:00:00Z", "end": "ab z"}'],
        [
            '{"email": "a..b@c.de", "time": "2024-01-31T00:00:00Z", "end": "abz"}',
            '{"email": ".a@c.de", "time": "2024-01-31T00:00:00Z", "end": "abz"}',
            '{"email": "a@c.de", "time": "2024-01-31T00:00:00+01:00", "end": "abz"}',
        ],
    ),
    "zod record of an enum": (
        {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"]},
            "additionalProperties": NUMBER,
            "required": ["a", "b"],
        },
        ['{"a": 1, "b": 2.5}'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', '{"a": 1, "b": null}'],
    ),
    "zod tuple": (
        {"type": "array", "prefixItems": [STRING, NUMBER], "items": False, "minItems": 2, "maxItems": 2},
        ['["a", 1]'],
        ['["a"]', '["a", 1, 2]', "[1, 1]"],
    ),
    # zod-to-json-schema, drafts 7 and 2019-09
    "zod tuple of draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": [STRING, NUMBER],
        },
        ['["a", 1]'],
        ['["a"]', "[1, 1]"],
    ),
    "zod intersection": (
        {
            "$schema": "https://json-schema.org/draft/2019-09/schema#",
            "allOf": [
                {"type": "object", "properties": {"a": STRING}, "required": ["a"]},
                {"type": "object", "properties": {"b": NUMBER}, "required": ["b"]},
            ],
            "unevaluatedProperties": False,
        },
        ['{"a": "x", "b": 1}'],
        ['{"a": "x"}', '{"a": "x", "b": 1, "c": 1}'],
    ),
    "zod lazy": (
        closed(v=NUMBER, kids={"type": "array", "items": {"$ref": "#"}}),
        ['{"v": 1, "kids": [{"v": 2, "kids": []}]}'],
        ['{"v": 1, "kids": [{"v": 2}]}'],
    ),
    # schemars
    "schemars numbers": (
        closed(
            a={"type": "integer", "format": "uint32", "minimum": 0},
            b={"type": "integer", "format": "int64"},
            c={"type": "number", "format": "double"},
            d={"type": "integer", "format": "uint8", "maximum": 255, "minimum": 0},
        ),
        [f'{{"a": {2**32 - 1}, "b": {2**62}, "c": 1.5e3, "d": 0}}'],
        [f'{{"a": {2**32}, "b": 1, "c": 1, "d": 0}}', '{"a": -1, "b": 1, "c": 1, "d": 0}'],
    ),
    "schemars enum": (
        {
            "oneOf": [
                {"description": "One.", "const": "One", "type": "string"},
                {"const": "Two", "type": "string"},
            ]
        },
        ['"One"', '"Two"'],
        ['"Three"'],
    ),
    "schemars enum with data": (
        {
            "oneOf": [
                {"type": "string", "enum": ["Unit"]},
                {
                    "type": "object",
                    "properties": {
                        "Pair": {
                            "type": "array",
                            "prefixItems": [INTEGER, INTEGER],
                            "minItems": 2,
                            "maxItems": 2,
                        }
                    },
                    "required": ["Pair"],
                    "additionalProperties": False,
                },
                closed(Named=closed(x=INTEGER)),
            ]
        },
        ['"Unit"', '{"Pair": [1, 2]}', '{"Named": {"x": 1}}'],
        ['"Pair"', '{"Pair": [1]}', '{"Pair": [1, 2], "Named": {"x": 1}}'],
    ),
    "schemars option": (
        {
            "type": "object",
            "properties": {"a": {"anyOf": [{"$ref": "#/definitions/B"}, {"type": "null"}]}},
            "definitions": {"B": closed(x=INTEGER)},
        },
        ["{}", '{"a": null}', '{"a": {"x": 1}}'],
        ['{"a": {}}'],
    ),
    # TypeBox
    "typebox": (
        {
            "type": "object",
            "required": ["c", "d", "r"],
            "properties": {
                "c": {"anyOf": [{"const": "x", "type": "string"}, {"const": "y", "type": "string"}]},
                "d": {
                    "type": "array",
                    "items": [NUMBER, STRING],
                    "additionalItems": False,
                    "minItems": 2,
                    "maxItems": 2,
                },
                "r": {"type": "object", "patternProperties": {"^(.*)$": NUMBER}},
            },
        },
        ['{"c": "x", "d": [1, "a"], "r": {"k": 1}}'],
        ['{"c": "z", "d": [1, "a"], "r": {}}', '{"c": "x", "d": [1, "a"], "r": {"k": null}}'],
    ),
    "typebox recursive": (
        {
            "$id": "T0",
            "type": "object",
            "required": ["kids"],
            "properties": {"kids": {"type": "array", "items": {"$ref": "T0"}}},
        },
        ['{"kids": [{"kids": []}]}'],
        ['{"kids": [{}]}'],
    ),
    # Pydantic, before and after 2.11
    "pydantic decimal": (
        closed(
            price={
                "anyOf": [NUMBER, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}],
                "title": "Price",
            }
        ),
        ['{"price": 1.25}'],
        ['{"price": "1.25"}', '{"price": null}'],
    ),
    "pydantic union": (
        {
            "$defs": {
                "A": {
                    "properties": {"kind": {"const": "a", "default": "a", "title": "Kind", "type": "string"}},
                    "title": "A",
                    "type": "object",
                },
                "B": {
                    "properties": {"kind": {"const": "b", "default": "b", "title": "Kind", "type": "string"}},
                    "title": "B",
                    "type": "object",
                },
            },
            "discriminator": {"mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}, "propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        },
        ['{"kind": "a"}', '{"kind": "b", "more": 1}'],
        ["{}", '{"kind": "c"}'],
    ),
}


@pytest.mark.parametrize("name", EMITTED)
def test_what_clients_emit(name: str) -> None:
    """It is taken, and answers are what it says."""
    schema, accepted, rejected = EMITTED[name]
    found = accepts(Grammar.json_schema(schema), [*accepted, *rejected])
    assert [True] * len(accepted) + [False] * len(rejected) == [place is None for place in found]
    # Lists of items are of older drafts, which TypeBox does not name.
    old = '"additionalItems"' in json.dumps(schema)
    default = jsonschema.Draft7Validator if old else jsonschema.Draft202012Validator
    for text in accepted:
        jsonschema.validators.validator_for(schema, default=default)(schema).validate(json.loads(text))


def test_the_classes_of_pydantic() -> None:
    """A class is taken as it is, and what is made of tokens drawn at random is one of its instances."""
    pydantic = pytest.importorskip("pydantic")

    class Color(enum.Enum):
        RED = "r"
        GREEN = "g"

    class Cat(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        kind: Literal["cat"]
        lives: Annotated[int, pydantic.Field(ge=0, lt=10)]

    class Dog(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        kind: Literal["dog"] = "dog"
        code: Annotated[str, pydantic.StringConstraints(pattern=r"^\d{2,3}$")]

    class Tree(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        value: bool
        parts: Annotated[list[Tree], pydantic.Field(max_length=2, default_factory=list)]

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        model_config = pydantic.ConfigDict(extra="forbid")
        day: datetime.date
        time: datetime.datetime
        id: uuid.UUID
        other: pydantic.UUID4
        path: pathlib.Path
        secret: pydantic.SecretStr
        price: decimal.Decimal | None = None
        color: Color
        pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
        tree: Tree
        pair: tuple[int, bool]
        counts: dict[Color, int]
        number: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]

    Tree.model_rebuild()
    namespace = {"Cat": Cat, "Dog": Dog, "Color": Color, "Tree": Tree, "pydantic": pydantic}
    Model.model_rebuild(_types_namespace=globals() | namespace)
    grammar = Grammar.json_schema(Model)
    assert [] == check_grammar(grammar).warnings
    for seed in range(4):
        Model.model_validate_json(text_of(answer(compiled(grammar), random.Random(seed), length=60)))
    several = Grammar.json_schema(pydantic.TypeAdapter(list[Cat]))
    found = accepts(several, ['[{"kind": "cat", "lives": 9}]', '[{"lives": 9}]'])
    assert [True, False] == [place is None for place in found]


def test_what_gives_a_schema_is_taken_by_its_methods() -> None:
    """Nothing of Pydantic is imported, and what a class raises is told."""

    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return INTEGER

    class Adapter:
        def json_schema(self) -> dict[str, Any]:
            return INTEGER

    class Old:
        __fields__ = ()

        @classmethod
        def schema(cls) -> dict[str, Any]:
            return INTEGER

    class Broken:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            raise RuntimeError("a callable has no schema")

    expected = Grammar.json_schema(INTEGER)
    assert [expected] * 3 == [Grammar.json_schema(one) for one in (Model, Adapter(), Old)]
    with pytest.raises(GrammarError, match=r"gives no JSON schema \(a callable has no schema\)"):
        Grammar.json_schema(Broken)
