"""Translates JSON schemas for llguidance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Definition
from hivellm_ort.grammar.schema.digits import LarkWriter
from hivellm_ort.grammar.schema.graph import Graph
from hivellm_ort.grammar.schema.keywords import says_nothing, unwrapped
from hivellm_ort.grammar.schema.reader import Reader, RefusedError
from hivellm_ort.grammar.schema.shapes import String
from hivellm_ort.grammar.schema.writer import JsonWriter

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["compile_schema"]

# The format of json.dumps, so that separators are forced.
_STYLE: dict[str, Any] = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_ESCAPES = 'nrbtf\\"'


def compile_schema(text: str, *, source: str, lenient: bool = False) -> Definition:
    """Translate a schema for llguidance. Every allowed answer is valid against the schema.

    Args:
        text: The schema, a JSON object, possibly in a wrapper of OpenAI's clients.
        source: Its source, for messages.
        lenient: Whether to leave out parts that cannot be enforced, with a warning. Else they are refused.

    Raises:
        GrammarError: It cannot be enforced, or no value satisfies it.
    """
    from llguidance import LLMatcher

    schema, pointer = unwrapped(json.loads(text))
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict):
        raise GrammarError(f"{source}, at /x-guidance: it must be an object")
    options = dict(options)
    lenient = any([lenient, options.pop("lenient", False), options.pop("coerce_one_of", False)])
    try:
        reader = Reader(schema, source=source, pointer=pointer, lenient=lenient)
        nothing = says_nothing(schema)
        if nothing:
            shown = ", ".join(map(repr, nothing[:5]))
            why = f"it has {shown} and no keyword of JSON schema, so it would allow anything; give the schema itself"
            reader.refuse(reader.root, "", why)
        graph = Graph(reader)
        if not graph.exists(graph.root):
            raise GrammarError(f"{source}: no value satisfies it; change the schema")
        # Escapes of letters would allow a listed key twice: "a" and "\u0061".
        plain = _STYLE | {"json_allowed_escapes": _ESCAPES} | options
        lark = LarkWriter(graph, plain)
        writer = JsonWriter(graph)
        document = {} if lark.needed else writer.document(graph.root)
        if (lark.needed or writer.repeats) and _has_controls(graph):
            why = "a constant with a control character cannot be beside keys that are not listed, or large integers"
            reader.refuse(reader.root, "", why)
        if lark.needed:
            definition = LLMatcher.grammar_from_lark(lark.grammar())
        else:
            style = cast("JsonCompileOptions", plain if writer.repeats else _STYLE | options)
            definition = LLMatcher.grammar_from_json_schema(
                json.dumps(document, ensure_ascii=False), defaults=style
            )
    except RefusedError as error:
        raise GrammarError(str(error)) from error
    except RecursionError as error:
        raise GrammarError(f"{source}: the schema is nested too deeply; move parts to $defs") from error
    return Definition(definition, tuple(reader.warnings))


def _has_controls(graph: Graph) -> bool:
    """Return whether a constant has control characters without a short escape in JSON."""
    texts = (
        text
        for shapes in graph.shapes.values()
        for shape in shapes
        if isinstance(shape, String)
        for text in shape.values or ()
    )
    return any(char < " " and char not in "\b\t\n\f\r" for text in texts for char in text)
