"""JSON schemas made at random: every answer under one that is taken validates."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from walking import answer, compiled, text_of

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import check_grammar
from hivellm_ort.grammar.schema.keywords import ANNOTATIONS, ASSERTIONS

# Each makes this many schemas; a long run sets more.
SCHEMAS = int(os.environ.get("HIVELLM_SCHEMA_EXAMPLES", "25"))
NAMES = ["a", "b", "kind", "é"]
TEXTS = ["a", "ab", "x", "é\n", ""]
NUMBERS = [0, 1, -3, 2.5, 10, 2**53 + 1, -(2**63), 2**64]
PATTERNS = ["^a", "^[ab]{1,3}$", "^.$", "^\\S\\s\\S$", "^x|^y$", "^[^a-c]{0,2}$", "^(kind|é)$"]


def schema(rng: random.Random, depth: int = 3) -> Any:
    """Return a schema of a few keywords."""
    if depth == 0 or rng.random() < 0.1:
        return rng.choice([True, {}, {"type": rng.choice(["string", "integer", "null"])}, constant(rng)])
    made: dict[str, Any] = {}
    if rng.random() < 0.6:
        kinds = ["object", "array", "string", "integer", "number", "boolean", "null"]
        made["type"] = rng.choice([rng.choice(kinds), rng.sample(kinds, 2), "object"])
    for _ in range(rng.randint(1, 3)):
        keyword, value = rng.choice(KEYWORDS)(rng, depth - 1)
        made[keyword] = value
        if keyword == "if":
            made[rng.choice(["then", "else"])] = schema(rng, depth - 1)
    return made


def constant(rng: random.Random) -> dict[str, Any]:
    """Return a schema of constants."""
    values = [*TEXTS, *NUMBERS, None, True, [1, "a"], {"a": 2**60 + 1}]
    return rng.choice([{"const": rng.choice(values)}, {"enum": rng.sample(values, 3)}])


def several(rng: random.Random, depth: int) -> list[Any]:
    """Return a few schemas."""
    return [schema(rng, depth) for _ in range(rng.randint(1, 3))]


def named(rng: random.Random, depth: int) -> dict[str, Any]:
    """Return a few schemas by name."""
    return {name: schema(rng, depth) for name in rng.sample(NAMES, rng.randint(1, 3))}


KEYWORDS: list[Callable[[random.Random, int], tuple[str, Any]]] = [
    lambda rng, depth: ("properties", named(rng, depth)),
    lambda rng, depth: ("properties", named(rng, depth)),
    lambda rng, depth: ("required", rng.sample(NAMES, rng.randint(1, 2))),
    lambda rng, depth: ("additionalProperties", rng.choice([False, schema(rng, depth)])),
    lambda rng, depth: ("patternProperties", {rng.choice(PATTERNS): schema(rng, depth)}),
    lambda rng, depth: ("propertyNames", schema(rng, min(depth, 1))),
    lambda rng, depth: ("minProperties", rng.randint(0, 2)),
    lambda rng, depth: ("maxProperties", rng.randint(0, 3)),
    lambda rng, depth: ("dependentRequired", {rng.choice(NAMES): rng.sample(NAMES, 1)}),
    lambda rng, depth: ("dependentSchemas", {rng.choice(NAMES): schema(rng, depth)}),
    lambda rng, depth: ("unevaluatedProperties", False),
    lambda rng, depth: ("items", schema(rng, depth)),
    lambda rng, depth: ("prefixItems", several(rng, depth)),
    lambda rng, depth: ("minItems", rng.randint(0, 3)),
    lambda rng, depth: ("maxItems", rng.randint(0, 3)),
    lambda rng, depth: ("uniqueItems", rng.choice([True, False])),
    lambda rng, depth: ("pattern", rng.choice(PATTERNS)),
    lambda rng, depth: ("minLength", rng.randint(0, 3)),
    lambda rng, depth: ("maxLength", rng.randint(0, 3)),
    lambda rng, depth: ("minimum", rng.choice(NUMBERS)),
    lambda rng, depth: ("maximum", rng.choice(NUMBERS)),
    lambda rng, depth: ("exclusiveMinimum", rng.choice(NUMBERS)),
    lambda rng, depth: ("exclusiveMaximum", rng.choice(NUMBERS)),
    lambda rng, depth: ("multipleOf", rng.choice([2, 3, 0.5])),
    lambda rng, depth: ("anyOf", several(rng, depth)),
    lambda rng, depth: ("oneOf", several(rng, depth)),
    lambda rng, depth: ("allOf", several(rng, depth)),
    lambda rng, depth: ("not", schema(rng, depth)),
    lambda rng, depth: ("if", schema(rng, depth)),
    lambda rng, depth: ("$ref", "#/$defs/other"),
    lambda rng, depth: next(iter(constant(rng).items())),
]


@pytest.mark.parametrize("seed", range(8))
def test_answers_under_random_schemas_validate(seed: int) -> None:
    """A schema is refused with a reason, or what is made of tokens drawn at random is valid."""
    rng = random.Random(seed)
    taken = 0
    for _ in range(SCHEMAS):
        made = schema(rng)
        made = {"allOf": [made]} if isinstance(made, bool) else made
        other = schema(rng, 2)
        # One that is defined by itself alone the validator follows for ever.
        made["$defs"] = {
            "other": other if "$ref" not in json.dumps(other) else {"items": {"$ref": "#/$defs/other"}}
        }
        try:
            constraint = compiled(Grammar.json_schema(made))
        except GrammarError:
            continue
        taken += 1
        text = text_of(answer(constraint, rng, length=12))
        assert [] == [error.message for error in _errors(made, text)], (json.dumps(made), text)
    assert taken


MALFORMED: list[Any] = [None, True, -1, 1.5, 2**70, "", "^(", [], [1], [{}], {"a": 1}, {"a": [1]}, {"(": {}}]


@pytest.mark.parametrize("keyword", sorted(ASSERTIONS | ANNOTATIONS | {"x-guidance"}))
def test_a_keyword_with_any_value_is_taken_or_refused(keyword: str) -> None:
    """What is no schema is an error of the grammar and no other, in a negation and under a property too."""
    for value in MALFORMED:
        made = {"type": "object", keyword: value}
        for whole in (made, {"not": made}, {"properties": {"a": made}, "required": ["a"]}):
            for lenient in (False, True):
                with contextlib.suppress(GrammarError):
                    check_grammar(Grammar.json_schema(whole, lenient=lenient))


def _errors(made: Any, text: str) -> list[jsonschema.ValidationError]:
    return list(jsonschema.Draft202012Validator(made).iter_errors(json.loads(text)))
