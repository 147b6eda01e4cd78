"""Answers under JSON schemas of the kinds that the JSON Schema test suite has: all of them validate."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from walking import answer, compiled, ids, text_of

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar


def record(required: Any = None, **properties: Any) -> dict[str, Any]:
    """Return an object of these properties and no others, all required where nothing else is said."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BOOLEAN, NULL = {"type": "boolean"}, {"type": "null"}
NODE = record(["value"], value=INTEGER, next={"$ref": "#/$defs/node"})
TREE = record(name={"const": "n"}, children={"type": "array", "items": {"$ref": "#"}, "maxItems": 2})

SCHEMAS: list[Any] = [
    # types
    True,
    {},
    STRING,
    INTEGER,
    NUMBER,
    BOOLEAN,
    NULL,
    {"type": "object"},
    {"type": "array"},
    {"type": ["string", "null"]},
    {"type": ["integer", "boolean"]},
    {"type": ["object", "array"]},
    {"type": ["number", "string", "boolean", "null"]},
    # enum and const
    {"enum": ["red", "amber", "green"]},
    {"enum": ["a", "ab", "abc"]},
    {"enum": [1, 2.5, -3, None, True]},
    {"enum": [[1, 2], {"a": "b"}, "c"]},
    {"enum": ["Größe", "東京", "🙂", '"', "\\", "\n"]},
    {"type": "string", "enum": ["x", "y"]},
    {"const": "fixed"},
    {"const": 0},
    {"const": None},
    {"const": {"a": [1, {"b": None}]}},
    {"const": "<think>"},
    {"const": "<|im_end|>"},
    # objects
    record(),
    record(name=STRING),
    record(name=STRING, age=INTEGER),
    record(["age"], name=STRING, age=INTEGER),
    record([], name=STRING, age=INTEGER),
    record([], a=NULL, b=NULL, c=NULL),
    record(a=record(b=record(c=record(d=BOOLEAN)))),
    record(**{"a b": INTEGER, 'q"uote': INTEGER, "ключ": INTEGER, "": INTEGER}),
    {"type": "object", "properties": {"a": INTEGER}},
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
    {"type": "object", "properties": {"a": INTEGER}, "required": ["b"]},
    {"type": "object", "additionalProperties": INTEGER},
    {"type": "object", "additionalProperties": {"type": "array", "items": BOOLEAN}},
    {"type": "object", "properties": {"a": STRING}, "additionalProperties": NUMBER},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "patternProperties": {"^x-": INTEGER}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"^[a-z]{2}$": STRING}, "additionalProperties": False},
    {"type": "object", "properties": {"id": INTEGER}, "patternProperties": {"^n_": NULL}, "required": ["id"]},
    {"properties": {"a": INTEGER}},
    {"type": "object", "additionalProperties": BOOLEAN, "minProperties": 1},
    {"type": "object", "additionalProperties": BOOLEAN, "maxProperties": 2},
    # arrays
    {"type": "array", "items": INTEGER},
    {"type": "array", "items": STRING, "minItems": 1},
    {"type": "array", "items": BOOLEAN, "maxItems": 3},
    {"type": "array", "items": NULL, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 3},
    {"type": "array", "maxItems": 0},
    {"type": "array", "items": {"type": "array", "items": INTEGER, "maxItems": 2}, "maxItems": 2},
    {"type": "array", "prefixItems": [STRING, INTEGER]},
    {"type": "array", "prefixItems": [STRING, INTEGER], "items": False},
    {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [BOOLEAN], "items": NULL, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": record(x=NUMBER, y=NUMBER), "minItems": 1},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 5},
    {"items": INTEGER},
    # anyOf, oneOf, allOf
    {"anyOf": [STRING, INTEGER]},
    {"anyOf": [record(a=INTEGER), record(b=STRING)]},
    {"anyOf": [{"const": "a"}, {"const": "ab"}, {"type": "string", "maxLength": 2}]},
    {"anyOf": [NULL, {"type": "array", "items": {"anyOf": [INTEGER, BOOLEAN]}}]},
    {"type": "object", "properties": {"a": {"anyOf": [INTEGER, NULL]}}, "required": ["a"]},
    {"oneOf": [STRING, INTEGER]},
    {"oneOf": [record(kind={"const": "a"}, n=INTEGER), record(kind={"const": "b"}, s=STRING)]},
    {"oneOf": [{"const": "x"}, {"const": "xy"}]},
    {"oneOf": [NULL, {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}]},
    {"allOf": [INTEGER, {"minimum": 3}]},
    {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": STRING}, "required": ["b"]},
        ]
    },
    {"allOf": [{"anyOf": [STRING, INTEGER]}, {"anyOf": [INTEGER, NULL]}]},
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": BOOLEAN}},
    # references
    {"$ref": "#/$defs/name", "$defs": {"name": STRING}},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {"$ref": "#/definitions/old", "definitions": {"old": INTEGER}},
    TREE,
    {"type": "array", "items": {"$ref": "#/$defs/p"}, "$defs": {"p": record(x=INTEGER)}, "minItems": 1},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": NUMBER}, "$ref": "#/$defs/a"},
    record(home={"$ref": "#/$defs/a"}, work={"$ref": "#/$defs/a"}) | {"$defs": {"a": record(zip=STRING)}},
    {"$id": "https://example.org/s", "$ref": "#/$defs/x", "$defs": {"x": NULL}},
    # text
    {"type": "string", "minLength": 1},
    {"type": "string", "minLength": 4},
    {"type": "string", "maxLength": 0},
    {"type": "string", "maxLength": 5},
    {"type": "string", "minLength": 2, "maxLength": 2},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
    {"type": "string", "pattern": "^(a|b)*c$"},
    {"type": "string", "pattern": "^\\d{4}-\\d{2}$"},
    {"type": "string", "pattern": "[0-9]"},
    {"type": "string", "pattern": "^\\w+@\\w+\\.com$"},
    {"type": "string", "pattern": '^"[^"]{1,3}"$'},
    {"type": "string", "pattern": "^[a-z]*$", "minLength": 2, "maxLength": 4},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "date-time"},
    # numbers
    {"type": "integer", "minimum": 0},
    {"type": "integer", "maximum": -1},
    {"type": "integer", "minimum": 10, "maximum": 99},
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    {"type": "integer", "multipleOf": 5},
    {"type": "integer", "minimum": 7, "maximum": 7},
    {"type": "number", "minimum": 0},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "maximum": 100},
    # all together
    record(
        steps={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": record(
                tool={"enum": ["search", "open_file", "run"]}, arguments=record(path=STRING, count=INTEGER)
            ),
        },
        done=BOOLEAN,
    ),
    record(
        mappings=record(
            properties={
                "type": "object",
                "additionalProperties": record(type={"enum": ["text", "keyword", "date", "long"]}),
            }
        )
    ),
    record(id={"type": "string", "format": "uuid"}, score={"type": ["number", "null"], "minimum": 0}),
    {"title": "a", "description": "b", "default": 1, "examples": [1], "type": "integer"},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "boolean"},
]


def _name(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=True)[:60]


def test_the_table_is_long_enough() -> None:
    """There are at least a hundred schemas."""
    assert len(SCHEMAS) >= 100


@pytest.mark.parametrize("schema", SCHEMAS, ids=_name)
def test_random_answers_validate(schema: Any) -> None:
    """What is made of tokens drawn at random is JSON, and valid."""
    for seed in range(3):
        text = text_of(answer(compiled(Grammar.json_schema(schema)), random.Random(seed)))
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"items": {"type": "integer"}}}, "at /not: "),
        ({"type": "array", "uniqueItems": True}, "at /uniqueItems: "),
        ({"if": {"items": {"type": "integer"}}, "then": {"minLength": 1}}, "at /if: "),
        ({"type": "array", "contains": {"type": "integer"}}, "at /contains: "),
        ({"properties": {"deep": {"uniqueItems": True}}}, "at /properties/deep/uniqueItems: "),
        ({"oneOf": [{"type": "string"}, {"pattern": "a"}]}, "or use anyOf"),
        ({"type": "colour"}, "at /type: there is no type 'colour'"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "https://example.org/a"}, "nothing is fetched"),
        ({"$ref": "#/$defs/missing"}, "does not exist"),
        ({"$ref": 5}, "at /$ref: it must be a text"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "no value satisfies it"),
        ({"enum": []}, "no value satisfies it"),
        ({"enum": 5}, "at /enum: 5 is not a list"),
        ({"minLength": "3"}, "at /minLength: '3' is not a count"),
        ({"properties": {"a": 3}}, "3 is not a schema"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "no token may come next"),
        (record(a={"$ref": "#"}), "no value satisfies it"),
        ({"x-guidance": {"colour": 1}}, "unknown field `colour`"),
        (False, "no value satisfies"),
        ({"a": {1, 2}}, "not JSON"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": "\ud800"}, "not JSON"),
        ('{"type": }', "line 1, column 10"),
        ('{"const": NaN}', "NaN"),
        ('["a"]', "must be an object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused(schema: Any, said: str) -> None:
    """A schema that answers could not be held to is an error that names the cause, before anything is generated."""
    with pytest.raises(GrammarError, match="json_schema") as caught:
        compiled(Grammar.json_schema(schema))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "schema", [3, [], [{"type": "string"}], object, b"{}", int, Grammar, Grammar.regex("a")]
)
def test_what_is_no_schema(schema: Any) -> None:
    """The error says what to pass instead."""
    with pytest.raises(
        TypeError, match=r"json_schema is \w+: it must be a dict, JSON text, True .* a Pydantic model"
    ):
        Grammar.json_schema(schema)


def test_answers_are_written_as_json_dumps_writes() -> None:
    """What lies between the values is fixed, so that it need not be generated."""
    schema = record(
        a={"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}, b=record(c=NULL)
    )
    assert ids('{"a": [1, 1], "b": {"c": null}}') == compiled(Grammar.json_schema(schema)).forced_tokens()


def test_a_schema_may_have_a_style_of_its_own() -> None:
    """The key of llguidance in a schema overrides the style."""
    style = {"x-guidance": {"item_separator": ",", "key_separator": ":"}}
    schema = record(a=NULL, b=NULL) | style
    assert ids('{"a":null,"b":null}') == compiled(Grammar.json_schema(schema)).forced_tokens()


def test_keys_come_in_the_order_of_the_schema() -> None:
    """Properties are not sorted."""
    assert '{"b": null, "a": null}' == text_of(
        compiled(Grammar.json_schema(record(b=NULL, a=NULL))).forced_tokens()
    )


def test_a_schema_may_be_text() -> None:
    """The JSON text of a schema is the same grammar as the schema."""
    assert Grammar.json_schema(record(a=NULL)) == Grammar.json_schema(json.dumps(record(a=NULL), indent=4))
    assert Grammar.json_schema(True) == Grammar.json_schema("{}")
