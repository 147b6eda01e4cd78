"""JSON schemas: one compiles and every answer under it validates, or it is refused with a GrammarError."""

from __future__ import annotations

import json
import random

import jsonschema
from attempts import refusing
from hostile_grammars import GRAMMARS
from mutations import bytes_changed, json_changed, mutated
from walking import allowed, compiled, text_of

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import check_grammar
from hivellm_ort.grammar.schema.keywords import ANNOTATIONS, ASSERTIONS

WORDS = [
    *sorted({*ANNOTATIONS, *ASSERTIONS}), "$ref", "$defs", "#/$defs/a", "#", "#/properties/a", "object", "array",
    "string", "integer", "number", "boolean", "null", "^a", "^(a|b)*$", "(?=a)", "[", "\\d{3}", "date-time", "uuid",
    "a", "b", "anyOf", "allOf", "oneOf", "not", "if", "then", "else",
]  # fmt: skip
_WAYS = (json_changed(WORDS), json_changed(WORDS), json_changed(WORDS), bytes_changed)
_LARGEST = 4096
_OBJECT = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[ab]{1,3}$", "maxLength": 3},
        "b": {
            "type": "array",
            "items": {"$ref": "#/$defs/n"},
            "minItems": 1,
            "maxItems": 3,
            "uniqueItems": False,
        },
        "kind": {"enum": ["x", "y", None, 3]},
    },
    "required": ["a", "kind"],
    "additionalProperties": False,
    "$defs": {
        "n": {"anyOf": [{"type": "integer", "minimum": -3, "exclusiveMaximum": 9}, {"const": {"é": 1}}]}
    },
}
_OTHERS = [
    {"type": ["number", "null"], "multipleOf": 0.5, "minimum": -1e3, "maximum": 1e3},
    {"type": "string", "format": "date-time"},
    {"oneOf": [{"type": "boolean"}, {"type": "object", "minProperties": 1, "patternProperties": {"^x": {}}}]},
    {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "integer"}},
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"not": {"const": 1}}}}]},
    {
        "name": "wrapped",
        "strict": True,
        "schema": {"type": "array", "prefixItems": [{"const": 1}], "items": False},
    },
]


def samples() -> list[bytes]:
    """Schemas of many keywords, and everything hostile that is small."""
    hostile = (grammar.text for grammar in GRAMMARS.values() if grammar.kind == "json_schema")
    texts = [*(json.dumps(one, indent=1) for one in (_OBJECT, *_OTHERS)), *hostile]
    return [text.encode() for text in texts if len(text) <= _LARGEST]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another schema."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Check it strictly, and make an answer under it, where what cannot be enforced is left out."""
    text = data.decode("utf-8", "surrogateescape")
    with refusing(GrammarError):
        check_grammar(Grammar("json_schema", text, lenient=True))
    with refusing(GrammarError):
        grammar = Grammar("json_schema", text)
        answer = _answer(grammar)
        if answer is not None:
            _validate(json.loads(answer), json.loads(grammar.text))


def _answer(grammar: Grammar) -> str | None:
    """What a few tokens at random write; None where they do not end."""
    constraint, rng, taken = compiled(grammar), random.Random(0), []
    for _ in range(24):
        choices = allowed(constraint)
        assert choices or constraint.finished
        if constraint.complete:
            return text_of(taken)
        taken.append(rng.choice(choices))
        constraint.accept(taken[-1])
    return None


def _validate(answer: object, schema: object) -> None:
    """Of a schema that the published library takes, the answer is valid."""
    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(schema)
        valid = kind(schema).is_valid(answer)
    except Exception:
        return
    assert valid, f"{answer!r} is not valid"
