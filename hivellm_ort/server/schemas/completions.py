"""The body of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from hivellm_ort.server.schemas.common import GenerationBody

__all__ = ["CompletionBody"]

_TOKENS = {"type": "array", "items": {"type": "integer"}}
_Prompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                _TOKENS,
                {"type": "array", "items": _TOKENS},
            ]
        }
    ),
]


class CompletionBody(GenerationBody):
    """The body of `/v1/completions`: the model continues a prompt, without a chat template."""

    prompt: _Prompt = Field(description="A text, token ids, or a list of either.")
    logprobs: int | None = Field(
        None, description="Log probabilities of each token and of this number of likeliest tokens."
    )
    echo: bool | None = Field(None, description="Whether the prompt is part of the text.")
    add_special_tokens: bool | None = Field(
        None,
        description="Whether the tokenizer's own tokens, such as <s>, go before a text; true by default.",
    )
