"""What each keyword of a JSON schema lets through, and what it keeps out."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import accepts, check_grammar

OBJECT = {"type": "object", "additionalProperties": False}
STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
LARGE = 1234567890123456789


def taken(schema: Any, *texts: str, lenient: bool = False) -> list[bool]:
    """Say of each text whether a schema accepts it."""
    return [place is None for place in accepts(Grammar.json_schema(schema, lenient=lenient), list(texts))]


def warnings(schema: Any, *, lenient: bool = False) -> list[str]:
    """Return what is said of a schema that is taken."""
    return check_grammar(Grammar.json_schema(schema, lenient=lenient)).warnings


def tagged(kind: str, *, required: list[str], **properties: Any) -> dict[str, Any]:
    """Return an object with a constant of its own."""
    return OBJECT | {"properties": {"kind": {"const": kind}, **properties}, "required": required}


# A schema, texts that it accepts, texts that it rejects.
KEYWORDS: list[tuple[Any, list[str], list[str]]] = [
    # oneOf
    ({"oneOf": [{"const": 1, "title": "one"}, {"const": 2}]}, ["1", "2"], ["3", "1.5"]),
    (
        {"oneOf": [tagged("a", required=["kind"]), tagged("b", required=["kind", "n"], n=INTEGER)]},
        ['{"kind": "a"}', '{"kind": "b", "n": 1}'],
        ['{"kind": "b"}', '{"kind": "c"}', "{}"],
    ),
    # the constant may be left out, and then both alternatives would hold
    (
        {"oneOf": [tagged("a", required=[]), tagged("b", required=[])]},
        ['{"kind": "a"}', '{"kind": "b"}'],
        ["{}"],
    ),
    (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}', '{"a": 1, "c": 2}'],
        ["{}", '{"a": 1, "b": 1}', '{"b": 1, "a": 1}'],
    ),
    ({"oneOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}]}, ["1", "null"], ['"a"']),
    # if, then, else
    (
        OBJECT
        | {
            "properties": {"kind": {"enum": ["a", "b"]}, "n": INTEGER},
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"required": ["n"]},
            "else": {"properties": {"n": False}},
        },
        ['{"kind": "a", "n": 1}', '{"kind": "b"}'],
        ['{"kind": "a"}', '{"kind": "b", "n": 1}'],
    ),
    ({"if": STRING, "then": {"const": "x"}, "else": INTEGER}, ['"x"', "1"], ['"y"', "null"]),
    ({"then": STRING, "type": "integer"}, ["1"], ['"x"']),
    # not
    ({"not": {}}, [], []),
    ({"type": "string", "not": {"const": "ab"}}, ['"a"', '"abc"', '""', '"b"'], ['"ab"']),
    ({"type": "string", "not": {"enum": ["", "é", "ab"]}}, ['"a"', '"abc"'], ['"é"', '""', '"ab"']),
    ({"type": ["integer", "null"], "not": {"enum": [5, None]}}, ["4", "-5", "55"], ["5", "null"]),
    ({"type": "number", "not": {"const": 5}}, ["4", "5.5"], ["5", "5.0", "5.00"]),
    ({"type": "number", "not": INTEGER}, ["1.5", "-0.25"], ["1", "1.0", "0"]),
    ({"not": {"type": ["string", "object"]}}, ["1", "null", "[]"], ['"a"', "{}"]),
    ({"type": "integer", "not": {"minimum": 3}}, ["2", "-9"], ["3"]),
    ({"type": "object", "not": {"required": ["a"]}}, ["{}", '{"b": 1}'], ['{"a": 1}']),
    ({"type": "string", "not": {"not": {"minLength": 2}}}, ['"ab"'], ['"a"']),
    # what depends
    (
        OBJECT | {"properties": {"a": INTEGER, "b": INTEGER}, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}'],
        ['{"a": 1}'],
    ),
    (
        {"type": "object", "properties": {"a": INTEGER}, "dependentSchemas": {"a": {"minProperties": 2}}},
        ["{}", '{"a": 1, "b": 1}', '{"b": 1}'],
        ['{"a": 1}'],
    ),
    # names of properties
    ({"type": "object", "propertyNames": STRING}, ['{"x": 1}'], []),
    (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER},
        ["{}", '{"a": 1}', '{"a": 1, "b": 2}'],
        ['{"c": 1}', '{"a": "x"}', '{"a": 1, "a": 2}'],
    ),
    (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": INTEGER},
        ["{}", '{"ab": 1}'],
        ['{"A": 1}', '{"ab": null}'],
    ),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"ab": 1}'], ['{"abc": 1}']),
    # numbers of properties
    (
        OBJECT | {"properties": {"a": NULL, "b": NULL, "c": NULL}, "minProperties": 2},
        ['{"a": null, "c": null}', '{"a": null, "b": null, "c": null}'],
        ['{"a": null}', "{}"],
    ),
    (OBJECT | {"properties": {"a": NULL}, "minProperties": 1}, ['{"a": null}'], ["{}"]),
    # what says nothing
    ({"type": "array", "items": INTEGER, "uniqueItems": False}, ["[1, 1]"], ['["a"]']),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1, 1]"]),
    ({"type": "array", "contains": STRING, "minContains": 0}, ["[1]"], []),
    (OBJECT | {"properties": {"a": NULL}, "unevaluatedProperties": False}, ['{"a": null}'], ['{"b": 1}']),
    (
        {"type": "object", "properties": {"a": NULL}, "unevaluatedProperties": False},
        ['{"a": null}'],
        ['{"b": 1}'],
    ),
    (
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"type": "object", "patternProperties": {"^x": NULL}}],
            "unevaluatedProperties": False,
            "$defs": {"a": {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}},
        },
        ['{"a": 1}', '{"a": 1, "x1": null}'],
        ['{"a": 1, "b": 1}', "{}", '{"a": 1, "x1": 1}'],
    ),
    (
        {"type": "object", "allOf": [{"additionalProperties": INTEGER}], "unevaluatedProperties": False},
        ['{"a": 1}'],
        ['{"a": null}'],
    ),
    ({"type": "array", "items": [STRING, INTEGER], "additionalItems": False}, ['["a", 1]'], ['["a", 1, 2]']),
    # numbers beyond doubles
    ({"const": LARGE}, [str(LARGE)], [str(LARGE - 21), str(LARGE + 1)]),
    ({"enum": [LARGE, "x", 2.5]}, [str(LARGE), '"x"', "2.5"], [str(LARGE - 21), "2"]),
    ({"const": [LARGE, {"a": LARGE}]}, [f'[{LARGE}, {{"a": {LARGE}}}]'], [f"[{LARGE - 21}, {LARGE}]"]),
    (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        [str(2**63 - 1), str(-(2**63)), "0", "-1", "10"],
        [str(2**63), str(-(2**63) - 1), "1.5", "01"],
    ),
    ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [str(2**64 - 1), "0"], [str(2**64), "-1"]),
    ({"type": "integer", "exclusiveMaximum": 2**60}, [str(2**60 - 1)], [str(2**60)]),
    ({"type": "integer", "minimum": LARGE, "maximum": LARGE + 2}, [str(LARGE + 1)], [str(LARGE + 3)]),
    ({"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1}, [str(2**53 - 1)], [str(2**53)]),
    (
        OBJECT
        | {
            "properties": {
                "id": {"const": LARGE},
                "name": STRING,
                "more": {"items": {"$ref": "#"}, "type": "array"},
            },
            "required": ["name"],
        },
        [f'{{"id": {LARGE}, "name": "x", "more": [{{"name": ""}}]}}', '{"name": "x"}'],
        [f'{{"id": {LARGE - 21}, "name": "x"}}', f'{{"id": {LARGE}}}', '{"name": "x", }', '{, "name": "x"}'],
    ),
    (
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": {"enum": [LARGE]}},
        ["{}", f'{{"b": {LARGE}}}', f'{{"a": "x", "b": {LARGE}, "c": {LARGE}}}'],
        [f'{{"a": {LARGE}}}', '{"b": 1}', f'{{"a": "x", "\\u0061": {LARGE}}}'],
    ),
    (
        {"type": "array", "prefixItems": [NULL], "items": {"const": LARGE}, "minItems": 2, "maxItems": 3},
        [f"[null, {LARGE}]", f"[null, {LARGE}, {LARGE}]"],
        ["[null]", f"[null, {LARGE}, {LARGE}, {LARGE}]", f"[{LARGE}, {LARGE}]"],
    ),
    # formats
    ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"0000-01-01"']),
    ({"type": "string", "format": "date-time"}, ['"2023-02-28T23:59:59Z"'], ['"2023-02-28T23:59:60Z"']),
    (
        {"type": "string", "format": "uuid4"},
        ['"2eb8aa08-aa98-41ea-b4aa-73b441d16380"'],
        ['"2eb8aa08-aa98-11ea-b4aa-73b441d16380"'],
    ),
    ({"type": "integer", "format": "uint8"}, ["255"], ["256", "-1"]),
    # patterns, as ECMAScript means them
    ({"type": "string", "pattern": "^.$"}, ['"a"', '"é"'], ['"\\r"', '"\\n"', '"ab"']),
    ({"type": "string", "pattern": "^\\s$"}, ['" "', '"\\t"', '"\u00a0"'], ['"\u0085"', '"a"']),
    ({"type": "string", "pattern": "^[a&&b]$"}, ['"a"', '"&"', '"b"'], ['"c"']),
    ({"type": "string", "pattern": "^[[a]$"}, ['"["', '"a"'], ['"b"']),
    ({"type": "string", "pattern": "^[+-]{2}{$"}, ['"+-{"'], ['"+-"']),
    ({"type": "string", "pattern": "^\\cA\\x41\\u0042\\/\\_$"}, ['"\\u0001AB/_"'], ['"AB/_"']),
    ({"type": "string", "pattern": "^(?!\\.)(?!.*--)[a.-]+$"}, ['"a.-"'], ['".a"', '"a--a"']),
]


@pytest.mark.parametrize(
    ("schema", "accepted", "rejected"), KEYWORDS, ids=[json.dumps(one)[:50] for one, _, _ in KEYWORDS]
)
def test_keywords(schema: Any, accepted: list[str], rejected: list[str]) -> None:
    """Texts are accepted and rejected as the schema says."""
    if schema == {"not": {}}:
        with pytest.raises(GrammarError, match="no value satisfies it"):
            taken(schema)
        return
    assert [True] * len(accepted) + [False] * len(rejected) == taken(schema, *accepted, *rejected)


@pytest.mark.parametrize(
    ("keyword", "annotating"),
    [
        *[
            ("format", name)
            for name in ("path", "password", "binary", "byte", "int64", "double", "uri-reference")
        ],
        *[("title", "x"), ("description", "x"), ("default", 5), ("examples", [5]), ("example", 5)],
        *[("deprecated", True), ("readOnly", True), ("writeOnly", True), ("$comment", "x"), ("x-order", 5)],
        *[
            ("contentEncoding", "base64"),
            ("contentMediaType", "image/png"),
            ("contentSchema", {"type": "object"}),
        ],
        *[
            ("discriminator", {"propertyName": "kind"}),
            ("$anchor", "x"),
            ("xml", {}),
            ("markdownDescription", "x"),
        ],
    ],
)
def test_what_only_annotates_is_accepted(keyword: str, annotating: Any) -> None:
    """Nothing is said of it, and it changes nothing."""
    assert [] == warnings({"type": "string", keyword: annotating})
    assert [True, False] == taken({"type": "string", keyword: annotating}, '"any text"', "5")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "requird": ["a"]}, "json_schema: the keyword 'requird' is unknown"),
        ({"type": "object", "requird": ["a"]}, "has no effect; did you mean 'required'?"),
        ({"properties": {"a/b": {"typ": "string"}}}, "at /properties/a~1b: the keyword 'typ' is unknown"),
        ({"type": "string", "colour": 1}, "begin its name with x- if it is a note"),
        ({"type": "string", "nullable": True}, 'write "type": [..., "null"]'),
        ({"type": "string", "format": "dat-time"}, "at /format: the format 'dat-time' is unknown"),
    ],
)  # fmt: skip
def test_what_is_misspelt_is_told(schema: Any, said: str) -> None:
    """It has no effect, and a warning names it by its pointer."""
    (warning,) = warnings(schema)
    assert said in warning


DECIMAL = {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}


def test_one_alternative_that_cannot_be_enforced_is_left_out() -> None:
    """The others hold, and a warning names it."""
    schema = OBJECT | {
        "properties": {"price": {"anyOf": [{"type": "number"}, DECIMAL]}},
        "required": ["price"],
    }
    assert [True, False] == taken(schema, '{"price": 1.5}', '{"price": "1.5"}')
    (warning,) = warnings(schema)
    assert "at /properties/price/anyOf/1: this alternative is left out" in warning
    assert "at /properties/price/anyOf/1/pattern" in warning
    assert "look-around is not supported" in warning


def test_an_alternative_is_left_out_for_what_is_inside_it() -> None:
    """However deep, and through references."""
    schema = {
        "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/x"}}, INTEGER],
        "$defs": {"x": OBJECT | {"properties": {"deep": DECIMAL}}},
    }
    assert [True, False] == taken(schema, "1", "[]")
    assert "at /$defs/x/properties/deep/pattern" in warnings(schema)[0]


@pytest.mark.parametrize(
    "schema",
    [
        DECIMAL,
        {"anyOf": [DECIMAL, DECIMAL]},
        # nothing but null would be left
        {"anyOf": [DECIMAL, NULL]},
        # a text of the second alternative may be one of the first
        {"oneOf": [DECIMAL, {"type": "string", "maxLength": 3}]},
    ],
)
def test_where_no_alternative_is_left_the_schema_is_refused(schema: Any) -> None:
    """Nothing else than what was asked for is generated instead."""
    with pytest.raises(GrammarError, match=r"/pattern: the pattern .* cannot be enforced .*look-around"):
        check_grammar(Grammar.json_schema(schema))


@pytest.mark.parametrize(
    ("schema", "pointer", "accepted", "rejected"),
    [
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "/uniqueItems", "[1, 1]", '["a"]'),
        ({"type": "array", "contains": INTEGER, "maxItems": 1}, "/contains", "[null]", "[1, 1]"),
        (DECIMAL, "/pattern", '"+"', '"a"'),
        ({"oneOf": [{"minLength": 1}, {"type": "string", "pattern": "b"}]}, "/oneOf", '"b"', '""'),
        ({"type": "integer", "multipleOf": 0.1234567890123}, "/multipleOf", "1", "1.5"),
        ({"type": "object", "not": {"additionalProperties": False}}, "/not", "{}", "1"),
        ({"type": "integer", "if": {"items": INTEGER}, "then": {"const": 1}}, "/if", "2", "null"),
        ({"type": "object", "minProperties": 2}, "/minProperties", "{}", "1"),
        ({"type": "number", "minimum": 2**60}, "/minimum", "1", "null"),
        ({"$dynamicRef": "#x", "type": "integer"}, "/$dynamicRef", "1", "null"),
        (
            {"type": "object", "anyOf": [{"required": ["a"]}], "unevaluatedProperties": False},
            "/unevaluatedProperties",
            '{"a": 1}',
            "1",
        ),
        (
            OBJECT | {"patternProperties": {"(?=a)b": INTEGER}, "properties": {"c": INTEGER}},
            "/patternProperties",
            '{"c": 1, "a": null}',
            '{"c": null}',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lenient_leaves_out_what_is_refused(schema: Any, pointer: str, accepted: str, rejected: str) -> None:
    """It is an error with the pointer, or a warning with it; what else the schema says holds in any case."""
    with pytest.raises(GrammarError) as caught:
        check_grammar(Grammar.json_schema(schema))
    assert f"json_schema, at {pointer}: " in str(caught.value)
    assert "lenient=True" in str(caught.value)
    said = warnings(schema, lenient=True)
    assert any(f"json_schema, at {pointer}: not enforced: " in one for one in said)
    assert [True, False] == taken(schema, accepted, rejected, lenient=True)
    # The schema may ask for it too.
    assert said == warnings({**schema, "x-guidance": {"lenient": True}})


def test_a_listed_key_cannot_come_again() -> None:
    """Neither as it is nor with an escape, because the last one would count."""
    schema = {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": STRING}
    texts = ['{"a": 1, "b": "x"}', '{"a": 1, "a": "x"}', '{"a": 1, "\\u0061": "x"}', '{"\\u0061": "x"}']
    assert [True, False, False, False] == taken(schema, *texts)


def test_the_schema_in_a_wrapper() -> None:
    """What OpenAI's clients send is taken for the schema inside, and pointers begin outside."""
    inner = OBJECT | {"properties": {"a": INTEGER}, "required": ["a"]}
    named = {"name": "answer", "strict": True, "schema": inner}
    wrappers = [
        named,
        {"type": "json_schema", "json_schema": named},
        {"response_format": {"type": "json_schema", "json_schema": named}},
        {"format": {"type": "json_schema", **named}},
    ]
    for wrapper in wrappers:
        assert [True, False, False, False] == taken(wrapper, '{"a": 1}', "5", '"free text"', "null")
    with pytest.raises(GrammarError, match="at /schema/items/uniqueItems"):
        check_grammar(Grammar.json_schema({"name": "x", "schema": {"items": {"uniqueItems": True}}}))


@pytest.mark.parametrize("schema", [{"name": "x", "parameters": {}}, {"schema": {}}, {"propertys": {}}])
def test_a_schema_without_any_keyword_is_refused(schema: Any) -> None:
    """It would let any JSON pass, which is not what was meant."""
    with pytest.raises(GrammarError, match="no keyword of JSON schema"):
        check_grammar(Grammar.json_schema(schema))
    assert [True] == taken(schema, "5", lenient=True)


def test_a_byte_order_mark_is_no_part_of_a_grammar() -> None:
    """Texts that were read with one are the same grammars."""
    assert Grammar.json_schema('{"type": "integer"}') == Grammar.json_schema('\ufeff{"type": "integer"}')
    assert Grammar.gbnf('root ::= "a"') == Grammar.gbnf('\ufeffroot ::= "a"')


def test_sizes_that_would_take_long_are_refused_soon() -> None:
    """Alternatives are compared with each other, so that their number is limited."""
    begin = time.monotonic()
    schema = {"oneOf": [{"type": "object", "properties": {"a": {"const": i}}} for i in range(400)]}
    with pytest.raises(GrammarError, match="at /oneOf: it has more than 300 alternatives"):
        check_grammar(Grammar.json_schema(schema))
    schema = {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(8)]} for i in range(8)]}
    with pytest.raises(GrammarError, match="more than 5000 kinds of value"):
        check_grammar(Grammar.json_schema(schema))
    assert time.monotonic() - begin < 30
