"""The bodies of `/tokenize` and `/detokenize`, in vLLM's form."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from hivellm_ort.server.schemas.chat import Message, TemplateOptions
from hivellm_ort.server.schemas.common import Body

__all__ = ["DetokenizeBody", "TokenizeBody"]


class TokenizeBody(Body):
    """The body of `/tokenize`: a text, or a conversation that is rendered as in `/v1/chat/completions`."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special_tokens: bool | None = Field(
        None, description="Whether the tokenizer's own tokens go before a prompt; true by default."
    )
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """The body of `/detokenize`."""

    model: str
    tokens: list[int]
