"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.body_options import JSON_OBJECT, check_schema, options_of, per_answer
from hivellm_ort.server.chat_answers import ChatAnswers
from hivellm_ort.server.errors import refused
from hivellm_ort.server.generation import Answers, unless_client_leaves
from hivellm_ort.server.models import check_length, choose
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.schemas.chat import ChatBody, ResponseFormat
from hivellm_ort.server.state import state_of
from hivellm_ort.server.streaming import STREAMED, EventStream, sent
from hivellm_ort.server.strict_json import StrictRoute
from hivellm_ort.server.told import TokenTexts

__all__ = ["router"]

router = APIRouter(tags=["answers"], route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=STREAMED, response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation: at once, or as it is written (`stream`)."""
    state = state_of(request)
    options = _options(body, state.options.limits)
    check_length(state, "tools", body.tools)
    chosen = await choose(state, body.model, messages=options.get("messages"), schema=body.schema_)
    asked = per_answer(options, body.n or 1)
    texts: TokenTexts | None = None
    if body.logprobs:
        texts = await asyncio.to_thread(lambda: TokenTexts(state.manager.tokenizer(chosen.name)))
    made = ChatAnswers(chosen.name, texts, calls=bool(body.tools))
    begun = Answers.begin(state, chosen.name, asked, steps=bool(body.stream))
    answers = await unless_client_leaves(request, begun)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(sent(state, made.chunks(answers, usage=usage)), answers, chosen.headers)
    results = await unless_client_leaves(request, answers.results())
    return JSONResponse(made.whole(results), headers=dict(chosen.headers))


def _options(body: ChatBody, limits: ServerLimits) -> GenerateOptions:
    """What the body asks of the library.

    Raises:
        ApiError: a field exceeds a limit, or contradicts another.
    """
    options = options_of(body, limits)
    options["messages"] = [message.model_dump(exclude_none=True) for message in body.messages]
    if body.schema_ is not None:
        options["schema"] = body.schema_
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise refused("max_tokens", "max_completion_tokens is another number: give one of them")
        if not 1 <= body.max_completion_tokens <= limits.max_tokens:
            raise refused(
                "max_completion_tokens", f"{body.max_completion_tokens}, and 1 to {limits.max_tokens} may be"
            )
        options["max_tokens"] = body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "there are none without logprobs: set logprobs to true")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    if body.response_format is not None:
        _set_format(options, body.response_format, limits)
    thinking = _thinking(body)
    if thinking is not None:
        options["enable_thinking"] = thinking
    _set_tools(options, body, limits)
    return options


def _set_tools(options: GenerateOptions, body: ChatBody, limits: ServerLimits) -> None:
    tools = body.tools or []
    if len(tools) > limits.max_tools:
        raise refused("tools", f"{len(tools)} tools, and {limits.max_tools} may be")
    for index, tool in enumerate(tools):
        check_schema(f"tools[{index}]", tool, limits)
    if tools:
        options["tools"] = tools
    if body.tool_choice is not None:
        options["tool_choice"] = body.tool_choice
    if body.parallel_tool_calls is not None:
        options["parallel_tool_calls"] = body.parallel_tool_calls


def _set_format(options: GenerateOptions, wanted: ResponseFormat, limits: ServerLimits) -> None:
    given = [name for name in ("grammar", "regex", "choice", "json_schema") if options.get(name) is not None]
    if wanted.type != "json_schema" and wanted.json_schema is not None:
        raise refused("response_format.json_schema", f"the type is {wanted.type!r}: make it 'json_schema'")
    if wanted.type == "text":
        return
    if given:
        raise refused(
            "response_format", f"{given[0]} says what the answer must look like already: give one of them"
        )
    if wanted.type == "json_object":
        options["json_schema"] = JSON_OBJECT
        return
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise refused(
            "response_format.json_schema.schema", "it is missing: give the schema, or the type 'json_object'"
        )
    check_schema("response_format.json_schema.schema", wanted.json_schema.schema_, limits)
    options["json_schema"] = wanted.json_schema.schema_
    # Where it is not to be strict, what cannot be enforced is told as a warning; by default it is refused.
    options["lenient"] = wanted.json_schema.strict is False


def _thinking(body: ChatBody) -> bool | None:
    """Whether the model may think first; None for the default."""
    told = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs is not None else None
    effort = None if body.reasoning_effort is None else body.reasoning_effort != "none"
    if told is not None and effort is not None and told != effort:
        raise refused(
            "reasoning_effort", "chat_template_kwargs.enable_thinking says otherwise: give one of them"
        )
    return effort if told is None else told
