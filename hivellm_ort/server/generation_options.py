"""From the body of a request to the options of the library, within the operator's limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.errors import field_error
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.schemas.common import GenerationBody, SamplingBody

__all__ = [
    "check_count",
    "check_schema",
    "generation_options",
    "options_per_answer",
    "sampling_options",
    "set_response_format",
    "set_tools",
]

_JSON_OBJECT: dict[str, Any] = {"type": "object"}  # any of them

_MAX_BAD_WORD = 128  # characters

# Fields that the library has under the same name.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "bad_words", "min_tokens", "stop", "seed", "prompt_lookup",
)  # fmt: skip


def generation_options(body: GenerationBody, limits: ServerLimits) -> GenerateOptions:
    """What the fields that chat and plain completions share ask of the library.

    Args:
        body: of the request.
        limits: what it may ask.

    Raises:
        ApiError: a field exceeds a limit, or two say what the answer must look like.
    """
    if body.stream_options is not None and not body.stream:
        raise field_error("stream_options", "there is no stream: set stream to true, or leave it out")
    check_count("n", body.n, limits.max_n)
    check_count("max_tokens", body.max_tokens, limits.max_tokens)
    options = sampling_options(body, limits)
    if body.max_tokens is not None:
        options["max_tokens"] = body.max_tokens
    return options


def sampling_options(body: SamplingBody, limits: ServerLimits) -> GenerateOptions:
    """What the fields that all bodies share ask of the library; raises as `generation_options`."""
    if len(body.stop or ()) > limits.max_stops:
        raise field_error("stop", f"{len(body.stop or ())} texts, and {limits.max_stops} may be")
    _check_bad_words(body.bad_words or (), limits.max_bad_words)
    if len(body.logit_bias or ()) > limits.max_logit_bias:
        raise field_error(
            "logit_bias", f"{len(body.logit_bias or ())} entries, and {limits.max_logit_bias} may be"
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
        options: changed.
        limits: what they may be.
        tools: in the form of a chat.
        choice: which of them the answer may call; None for the default.
        parallel: whether it may have several calls; None for the default.

    Raises:
        ApiError: they exceed a limit.
    """
    tools = list(tools or ())
    if len(tools) > limits.max_tools:
        raise field_error("tools", f"{len(tools)} tools, and {limits.max_tools} may be")
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
    """Add what the answer must look like to the options of a request.

    Args:
        options: changed.
        limits: what a schema may be.
        field: that has the kind, for errors.
        kind: `text`, `json_object` or `json_schema`.
        schema: of `json_schema`.
        schema_field: where it is, for errors.
        strict: false where what cannot be enforced of it is left out.

    Raises:
        ApiError: the schema is missing or exceeds a limit, or another field says what the answer must look like.
    """
    given = [name for name in ("grammar", "regex", "choice", "json_schema") if options.get(name) is not None]
    if kind == "text":
        return
    if given:
        raise field_error(field, f"{given[0]} says what the answer must look like already: give one of them")
    if kind == "json_object":
        options["json_schema"] = _JSON_OBJECT
        return
    if schema is None:
        raise field_error(schema_field, "it is missing: give the schema, or the type 'json_object'")
    check_schema(schema_field, schema, limits)
    options["json_schema"] = schema
    # Where it is not to be strict, what cannot be enforced is told as a warning; by default it is refused.
    options["lenient"] = strict is False


def options_per_answer(options: GenerateOptions, n: int) -> list[GenerateOptions]:
    """The options of each of `n` answers: the same, but for the seed, which counts on as vLLM's does."""
    seed = options.get("seed")
    return [options if seed is None else {**options, "seed": seed + index} for index in range(n)]


def check_schema(field: str, schema: Any, limits: ServerLimits) -> None:
    """Refuse a schema or grammar that is too large, or too deep.

    Args:
        field: its name, for the error.
        schema: what JSON has.
        limits: what it may be.

    Raises:
        ApiError: it exceeds a limit.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    size = len(text.encode("utf-8", "replace"))
    if size > limits.max_schema_bytes:
        raise field_error(field, f"{size} bytes, and {limits.max_schema_bytes} may be")
    if _depth(schema, limits.max_schema_depth) > limits.max_schema_depth:
        raise field_error(field, f"deeper than {limits.max_schema_depth} objects and lists within each other")


def _constraint(body: SamplingBody, limits: ServerLimits) -> dict[str, Any]:
    """What the answer must look like: at most one option, under whatever name it came."""
    found = {field: (option, value) for field, option, value in _constraints(body) if value is not None}
    if len(found) > 1:
        raise field_error(
            list(found)[1], f"{' and '.join(found)} are given: an answer has one form, so give one"
        )
    for field, (option, value) in found.items():
        check_schema(field, value, limits)
        return {option: value}
    return {}


def _constraints(body: SamplingBody) -> Iterator[tuple[str, str, Any]]:
    """The field, the option and the value of everything that says what the answer must look like."""
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
    """Refuse words whose table would be large: it has every beginning of every word."""
    if len(words) > most:
        raise field_error("bad_words", f"{len(words)} texts, and {most} may be")
    for index, word in enumerate(words):
        if len(word) > _MAX_BAD_WORD:
            raise field_error(f"bad_words[{index}]", f"{len(word)} characters, and {_MAX_BAD_WORD} may be")


def check_count(field: str, value: int | None, most: int) -> None:
    """Refuse a number that is not from 1 to `most`; None is none."""
    if value is not None and not 1 <= value <= most:
        raise field_error(field, f"{value}, and 1 to {most} may be")


def _depth(value: Any, most: int) -> int:
    """How many objects and lists are within each other; where there are more than `most`, one more than that."""
    level, depth = [value], 0
    while (level := [one for one in level if isinstance(one, dict | list)]) and depth <= most:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def _present(options: dict[str, Any]) -> GenerateOptions:
    given: GenerateOptions = {}
    given.update({name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]
    return given
