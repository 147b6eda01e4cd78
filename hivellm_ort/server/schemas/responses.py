"""The body of `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from hivellm_ort.server.schemas.common import Body, SamplingBody, never, of_types

__all__ = [
    "CallItem",
    "FunctionTool",
    "InputText",
    "MessageItem",
    "OutputItem",
    "OutputText",
    "ReasoningItem",
    "RefusalText",
    "ResponsesBody",
    "TextConfig",
    "as_items",
    "as_parts",
    "kind_of_item",
]

_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_TEXTS = ("input_text", "output_text", "refusal")
_Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    """A text of a message, or of the output of a function."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Annotated[None, never("prompt prefixes are cached automatically")] = None


class OutputText(Body):
    """A text of the assistant."""

    type: Literal["output_text"]
    text: str
    # Clients send answers back unchanged.
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class RefusalText(Body):
    """A refusal of the assistant."""

    type: Literal["refusal"]
    refusal: str


def as_parts(value: Any) -> Any:
    """Return a text as a list of one part."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


_Part = Annotated[
    InputText | OutputText | RefusalText, Discriminator("type"), of_types(_TEXTS, "prompts are text")
]
_Parts = Annotated[
    list[_Part],
    BeforeValidator(as_parts, json_schema_input_type=str | list[_Part]),
]
_InputTexts = Annotated[
    list[Annotated[InputText, of_types(("input_text",), "prompts are text")]],
    BeforeValidator(as_parts, json_schema_input_type=str | list[InputText]),
]


class MessageItem(Body):
    """A message of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: _Parts
    id: str | None = None
    status: _Status | None = None
    phase: Annotated[None, never("answers have one phase")] = None


class CallItem(Body):
    """A function call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status | None = None
    namespace: Annotated[None, never("tool names have no namespace")] = None
    caller: Annotated[None, never("only the model itself calls")] = None


class OutputItem(Body):
    """The output of a function."""

    type: Literal["function_call_output"]
    call_id: str
    output: _InputTexts
    id: str | None = None
    status: _Status | None = None
    caller: Annotated[None, never("only the model itself calls")] = None


class _Thought(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    content: list[_Thought] | None = None
    summary: Annotated[
        Annotated[list[Any], Field(max_length=0)] | None,
        Field(description="Empty: the whole reasoning is in the content."),
    ] = None
    id: str | None = None
    status: _Status | None = None
    encrypted_content: Annotated[None, never("reasoning is plain text here, in the content")] = None


def kind_of_item(item: Any) -> str | None:
    """Return the type of an item. Without a type it is a message."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


_Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(kind_of_item),
    of_types(_ITEMS, f"an item is one of {', '.join(_ITEMS)}"),
]


def as_items(value: Any) -> Any:
    """Return a text as a list of one message."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(Body):
    """A function that the answer may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Annotated[None, never("the model always sees all tools")] = None
    allowed_callers: Annotated[None, never("only the model itself calls")] = None
    output_schema: Annotated[None, never("describe the output in the description")] = None


class _NamedTool(Body):
    type: Literal["function"]
    name: str


class _Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """The format of the answer's text."""

    format: _Format | None = None
    verbosity: Annotated[None, never("say in a message how long the answer should be")] = None


class _Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="`none` switches thinking off, every other value switches it on."
    )
    summary: Annotated[None, never("the whole reasoning is in the content of reasoning items")] = None
    generate_summary: Annotated[None, never("the whole reasoning is in the content of reasoning items")] = (
        None
    )
    context: Annotated[None, never("the chat template decides which reasoning the model sees")] = None
    mode: Annotated[None, never("the server has one mode")] = None


class _ResponseStreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponsesBody(SamplingBody):
    """The body of `/v1/responses`."""

    input: Annotated[
        list[_Item], BeforeValidator(as_items, json_schema_input_type=str | list[_Item]), Field(min_length=1)
    ]
    instructions: str | None = Field(None, description="The system message.")
    max_output_tokens: int | None = Field(None, description="Most tokens of the answer, with reasoning.")
    tools: list[Annotated[FunctionTool, of_types(("function",), "only functions can be called")]] | None = (
        None
    )
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[_NamedTool, of_types(("function",), "name one function, or 'auto' or 'required'")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: _Reasoning | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: _ResponseStreamOptions | None = None
    schema_: str | None = Field(
        None,
        alias="schema",
        description="A schema (DDL, a graph schema) for the system message.",
    )

    # Accepted with the values that describe what the server does anyway.
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt: Annotated[None, never("nothing is stored: write its text into instructions or input")] = None

    # The names of fields in other routes.
    messages: Annotated[None, never("use input")] = None
    max_tokens: Annotated[None, never("use max_output_tokens")] = None
    max_completion_tokens: Annotated[None, never("use max_output_tokens")] = None
    response_format: Annotated[None, never("use text.format")] = None
    reasoning_effort: Annotated[None, never("use reasoning.effort")] = None
    logprobs: Annotated[None, never("use include, with 'message.output_text.logprobs'")] = None
    n: Annotated[None, never("send several requests")] = None
