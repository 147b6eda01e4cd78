"""Fields and validators that the bodies of several routes share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "FIELDS",
    "REFUSED",
    "Body",
    "GenerationBody",
    "SamplingBody",
    "StreamOptions",
    "StructuredOutputs",
    "Texts",
    "never",
    "of_types",
]

_DIGITS = 18
_TOKEN_ID = re.compile(rf"[0-9]{{1,{_DIGITS}}}")

FIELDS: set[str] = set()
"""The names of the fields of all bodies, for errors."""

REFUSED = {
    "audio": "answers are text",
    "best_of": "ask for n answers and choose",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "prediction": "use prompt_lookup, which guesses from the prompt",
    "suffix": "the models continue a prompt, and do not fill gaps",
    "verbosity": "say in a message how long the answer should be",
    "web_search_options": "the server does not search the web",
    "ignore_eos": "use min_tokens",
    "stop_token_ids": "use stop, with texts",
    "skip_special_tokens": "answers never hold special tokens",
    "spaces_between_special_tokens": "answers never hold special tokens",
    "prompt_logprobs": "log probabilities are given for answers, not for prompts",
    "allowed_token_ids": "use choice, regex or grammar",
    "truncate_prompt_tokens": "shorten the prompt yourself",
    "use_beam_search": "answers are sampled, or greedy with temperature 0",
    "length_penalty": "answers are sampled, or greedy with temperature 0",
    "priority": "requests are answered first come, first served",
    "add_generation_prompt": "the answer is always a new message of the assistant",
    "continue_final_message": "the answer is always a new message; use /v1/completions to continue a text",
    "chat_template": "each expert has its own",
    "documents": "write them into a message",
    "mm_processor_kwargs": "prompts are text",
    "previous_response_id": "nothing is stored: send the whole conversation as input",
    "conversation": "nothing is stored: send the whole conversation as input",
    "context_management": "the server does not shorten conversations: send a shorter input",
    "background_options": "the server has no background answers",
    "max_tool_calls": "the server calls no tools itself",
    "moderation": "the server has no moderation",
    "access_programs": "the server has none",
    "image": "prompts are text",
    "prompt_cache_options": "prompt prefixes are cached automatically",
}
"""Fields of OpenAI or vLLM that are not supported, and what to do instead."""


def _as_texts(value: Any) -> Any:
    """Return one text as a list."""
    return [value] if isinstance(value, str) else value


Texts = Annotated[
    list[str],
    BeforeValidator(_as_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""A text, or a list of texts."""


class Body(BaseModel):
    """A JSON object with known fields only. Null means that a field is not set."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), serialize_by_alias=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        FIELDS.update(cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        """Drop null values of unsupported fields: clients send null for fields that they do not use."""
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None or name not in REFUSED}


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Whether the last chunk has the token usage.")


class StructuredOutputs(Body):
    """A constraint of the answer in vLLM's form. Only one field may be set."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None


def of_types(known: Iterable[str], otherwise: str) -> BeforeValidator:
    """Return a validator that refuses objects with an unknown `type`.

    Args:
        known: The supported types.
        otherwise: What to do instead, for the error.
    """
    names = tuple(known)

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind is not None and kind not in names:
            raise PydanticCustomError(
                "unsupported_type",
                "the type {kind} is not supported: {otherwise}",
                {"kind": repr(kind), "otherwise": otherwise},
            )
        return value

    return BeforeValidator(check)


def never(otherwise: str) -> BeforeValidator:
    """Return a validator of a field that must be null. The error says what to do instead."""

    def check(value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError(
                "unsupported", "it is not supported: {otherwise}", {"otherwise": otherwise}
            )
        return value

    return BeforeValidator(check)


class SamplingBody(Body):
    """The fields that all bodies for answers share."""

    model: str = Field(description="An expert's name, `base` for the base model, or `auto` for routing.")
    stream: bool | None = None
    stop: Texts | None = Field(None, description="Texts that end the answer.")
    seed: int | None = None
    temperature: float | None = Field(None, description="0 is greedy; the default is the expert's own.")
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Biases by token id.")
    user: str | None = Field(None, description="Accepted and not used.")

    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_tokens: int | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    prompt_lookup: bool | None = None

    grammar: str | bool | None = Field(
        None,
        description="A GBNF grammar that the answer must match; true is that of the package, false is none.",
    )
    regex: str | None = Field(None, description="A regular expression that the answer must match.")
    choice: list[str] | None = Field(None, description="The answer must be one of these texts.")
    json_schema: dict[str, Any] | bool | None = Field(
        None, description="A JSON schema that the answer must match."
    )
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _check_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token_id in value or ():
            if not _TOKEN_ID.fullmatch(token_id):
                key = repr(token_id[:_DIGITS])
                raise PydanticCustomError("bias", "{key} is not a token id", {"key": key})
        return value


class GenerationBody(SamplingBody):
    """The fields that chat and plain completions share."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(None, description="How many answers.")
    max_tokens: int | None = None
