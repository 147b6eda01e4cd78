"""Converts the fields of a request body to `GenerateOptions`, within the operator's limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.errors import field_error
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.schemas.common import GenerationBody, SamplingBody
from hivellm_ort.server.schemas.responses import ResponsesBody

__all__ = [
    "check_count",
    "check_schema",
    "check_stream_options",
    "generation_options",
    "options_per_answer",
    "sampling_options",
    "set_response_format",
    "set_tools",
]

_JSON_OBJECT: dict[str, Any] = {"type": "object"}  # any object

_MAX_BAD_WORD = 128  # characters

# Fields with the same name in the library.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "bad_words", "min_tokens", "stop", "seed", "prompt_lookup",
)  # fmt: skip


def generation_options(body: GenerationBody, limits: ServerLimits) -> GenerateOptions:
    """Return the options for the fields that chat and plain completions share.

    Args:
        body: The body of the request.
        limits: The limits of the server.

    Raises:
        ApiError: A field exceeds a limit, or two fields constrain the answer.
    """
    check_stream_options(body)
    check_count("n", body.n, limits.max_n)
    check_count("max_tokens", body.max_tokens, limits.max_tokens)
    options = sampling_options(body, limits)
    if body.max_tokens is not None:
        options["max_tokens"] = body.max_tokens
    return options


def sampling_options(body: SamplingBody, limits: ServerLimits) -> GenerateOptions:
    """Return the options for the fields that all bodies share. Raises as `generation_options`."""
    if len(body.stop or ()) > limits.max_stops:
        raise field_error("stop", f"{len(body.stop or ())} texts; at most {limits.max_stops} are allowed")
    _check_bad_words(body.bad_words or (), limits.max_bad_words)
    if len(body.logit_bias or ()) > limits.max_logit_bias:
        raise field_error(
            "logit_bias", f"{len(body.logit_bias or ())} entries; at most {limits.max_logit_bias} are allowed"
        )
    options: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    options |= {
        "include_stop": body.include_stop_str_in_output,
        "logit_bias": {int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()} or None,
        **_constraint(body, limits),
    }
    return _present(options)


def set_tools(
    options: GenerateOptions,
    limits: ServerLimits,
    *,
    tools: Sequence[dict[str, Any]] | None,
    choice: dict[str, Any] | str | None,
    parallel: bool | None,
) -> None:
    """Add the tools of a request to its options.

    Args:
        options: The options; changed in place.
        limits: The limits of the server.
        tools: The tools, in the form of `/v1/chat/completions`.
        choice: The field `tool_choice`; None for the default.
        parallel: Whether the answer may have several calls; None for the default.

    Raises:
        ApiError: The tools exceed a limit.
    """
    tools = list(tools or ())
    if len(tools) > limits.max_tools:
        raise field_error("tools", f"{len(tools)} tools; at most {limits.max_tools} are allowed")
    for index, tool in enumerate(tools):
        check_schema(f"tools[{index}]", tool, limits)
    if tools:
        options["tools"] = tools
    if choice is not None:
        options["tool_choice"] = choice
    if parallel is not None:
        options["parallel_tool_calls"] = parallel


def set_response_format(
    options: GenerateOptions,
    limits: ServerLimits,
    *,
    field: str,
    kind: str,
    schema: dict[str, Any] | None,
    schema_field: str,
    strict: bool | None,
) -> None:
    """Add the response format of a request to its options.

    Args:
        options: The options; changed in place.
        limits: The limits of the server.
        field: The field with the kind, for errors.
        kind: `text`, `json_object` or `json_schema`.
        schema: The JSON schema of `json_schema`.
        schema_field: The field with the schema, for errors.
        strict: False to ignore parts of the schema that cannot be enforced.

    Raises:
        ApiError: The schema is missing or exceeds a limit, or another field constrains the answer too.
    """
    given = [name for name in ("grammar", "regex", "choice", "json_schema") if options.get(name) is not None]
    if kind == "text":
        return
    if given:
        raise field_error(field, f"{given[0]} constrains the answer too: give one of them")
    if kind == "json_object":
        options["json_schema"] = _JSON_OBJECT
        return
    if schema is None:
        raise field_error(schema_field, "it is missing: give the schema, or the type 'json_object'")
    check_schema(schema_field, schema, limits)
    options["json_schema"] = schema
    # Parts that cannot be enforced are an error by default, and a warning with strict: false.
    options["lenient"] = strict is False


def options_per_answer(options: GenerateOptions, n: int) -> list[GenerateOptions]:
    """Return the options of each of `n` answers. As in vLLM, answer number i has the seed `seed + i`."""
    seed = options.get("seed")
    return [options if seed is None else {**options, "seed": seed + index} for index in range(n)]


def check_schema(field: str, schema: Any, limits: ServerLimits) -> None:
    """Refuse a schema or grammar that is too large or too deep.

    Args:
        field: The name of its field, for the error.
        schema: The schema or grammar, as JSON types.
        limits: The limits of the server.

    Raises:
        ApiError: It exceeds a limit.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    size = len(text.encode("utf-8", "replace"))
    if size > limits.max_schema_bytes:
        raise field_error(field, f"{size} bytes; at most {limits.max_schema_bytes} are allowed")
    if _depth(schema, limits.max_schema_depth) > limits.max_schema_depth:
        raise field_error(field, f"it has more than {limits.max_schema_depth} levels of objects and lists")


def check_stream_options(body: GenerationBody | ResponsesBody) -> None:
    """Refuse options of a stream without `stream`."""
    if body.stream_options is not None and not body.stream:
        raise field_error("stream_options", "it needs stream: set stream to true, or leave it out")


def _constraint(body: SamplingBody, limits: ServerLimits) -> dict[str, Any]:
    """Return the one option that constrains the answer; an empty dict if no field does."""
    found = {field: (option, value) for field, option, value in _constraints(body) if value is not None}
    if len(found) > 1:
        raise field_error(list(found)[1], f"{' and '.join(found)} are given: give one of them")
    for field, (option, value) in found.items():
        check_schema(field, value, limits)
        return {option: value}
    return {}


def _constraints(body: SamplingBody) -> Iterator[tuple[str, str, Any]]:
    """Yield the field, the option and the value of each field that can constrain the answer."""
    for name in ("grammar", "regex", "choice", "json_schema"):
        yield name, name, getattr(body, name)
    for name, option in (
        ("json", "json_schema"),
        ("regex", "regex"),
        ("choice", "choice"),
        ("grammar", "grammar"),
    ):
        yield f"guided_{name}", option, getattr(body, f"guided_{name}")
    structured = body.structured_outputs
    if structured is not None:
        yield "structured_outputs.json", "json_schema", structured.json_
        for name in ("regex", "choice", "grammar"):
            yield f"structured_outputs.{name}", name, getattr(structured, name)
        yield "structured_outputs.json_object", "json_schema", structured.json_object and _JSON_OBJECT


def _check_bad_words(words: Sequence[str], most: int) -> None:
    """Refuse words whose table would be large. The table has every prefix of every word."""
    if len(words) > most:
        raise field_error("bad_words", f"{len(words)} texts; at most {most} are allowed")
    for index, word in enumerate(words):
        if len(word) > _MAX_BAD_WORD:
            raise field_error(
                f"bad_words[{index}]", f"{len(word)} characters; at most {_MAX_BAD_WORD} are allowed"
            )


def check_count(field: str, value: int | None, most: int) -> None:
    """Refuse a number that is not from 1 to `most`. None is accepted."""
    if value is not None and not 1 <= value <= most:
        raise field_error(field, f"it is {value}; it must be from 1 to {most}")


def _depth(value: Any, most: int) -> int:
    """Return the depth of nested objects and lists, but no more than `most` + 1."""
    level, depth = [value], 0
    while (level := [one for one in level if isinstance(one, dict | list)]) and depth <= most:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def _present(options: dict[str, Any]) -> GenerateOptions:
    given: GenerateOptions = {}
    given.update({name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]
    return given
