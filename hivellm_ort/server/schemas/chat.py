"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from hivellm_ort.server.schemas.common import Body, GenerationBody

__all__ = [
    "Call",
    "CalledFunction",
    "ChatBody",
    "JsonSchemaFormat",
    "Message",
    "ResponseFormat",
    "TemplateOptions",
]

_Content = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


class CalledFunction(Body):
    """The function and the arguments of a tool call."""

    name: str
    arguments: dict[str, Any] | str | None = None
    # OpenAI's clients add the parsed arguments. No template may show them to the model.
    parsed_arguments: Any = Field(None, exclude=True)


class Call(Body):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction
    index: int | None = Field(None, exclude=True, description="Its index in chunks of a stream; not used.")


class Message(Body):
    """A message. `docs/messages.md` describes the fields of each role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # Clients send answers back unchanged, with all fields of OpenAI's answers.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    parsed: Any = Field(None, exclude=True, description="What a client parsed from the text; not used.")


class JsonSchemaFormat(Body):
    """A JSON schema that the answer must match."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class TemplateOptions(Body):
    """Variables of the chat template."""

    enable_thinking: bool | None = None


class ChatBody(GenerationBody):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, description="Most tokens of an answer, as max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | str | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="`none` switches thinking off, every other value switches it on."
    )
    schema_: str | None = Field(
        None,
        alias="schema",
        description="A schema (DDL, a graph schema) for the system message.",
    )

    # Accepted with the values that describe what the server does anyway.
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
