"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.answer_fields import LogprobsFormatter
from hivellm_ort.server.chat_formatter import ChatFormatter
from hivellm_ort.server.errors import field_error
from hivellm_ort.server.generation_options import (
    check_count,
    generation_options,
    options_per_answer,
    set_response_format,
    set_tools,
)
from hivellm_ort.server.models import check_length, choose_expert
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.schemas.chat import ChatBody
from hivellm_ort.server.state import server_state
from hivellm_ort.server.streaming import STREAM_RESPONSES, answer
from hivellm_ort.server.strict_route import StrictJSONRoute

__all__ = ["router"]

router = APIRouter(tags=["answers"], route_class=StrictJSONRoute)


@router.post("/v1/chat/completions", responses=STREAM_RESPONSES, response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, in one document or as a stream (`stream`)."""
    state = server_state(request)
    options = _options(body, state.options.limits)
    check_length(state, "tools", body.tools)
    chosen = await choose_expert(state, body.model, messages=options.get("messages"), schema=body.schema_)
    answer_options = options_per_answer(options, body.n or 1)
    texts: LogprobsFormatter | None = None
    if body.logprobs:
        texts = await asyncio.to_thread(lambda: LogprobsFormatter(state.manager.tokenizer(chosen.name)))
    formatter = ChatFormatter(chosen.name, texts, calls=bool(body.tools))
    return await answer(request, body, chosen, answer_options, formatter)


def _options(body: ChatBody, limits: ServerLimits) -> GenerateOptions:
    """Return the options for a body.

    Raises:
        ApiError: A field exceeds a limit, or contradicts another.
    """
    options = generation_options(body, limits)
    options["messages"] = [message.model_dump(exclude_none=True) for message in body.messages]
    if body.schema_ is not None:
        options["schema"] = body.schema_
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise field_error("max_tokens", "max_completion_tokens has another value: give one of them")
        check_count("max_completion_tokens", body.max_completion_tokens, limits.max_tokens)
        options["max_tokens"] = body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise field_error("top_logprobs", "it needs logprobs: set logprobs to true")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    wanted = body.response_format
    if wanted is not None:
        described = wanted.json_schema
        if wanted.type != "json_schema" and described is not None:
            raise field_error(
                "response_format.json_schema", f"the type is {wanted.type!r}: make it 'json_schema'"
            )
        set_response_format(
            options,
            limits,
            field="response_format",
            kind=wanted.type,
            schema=described.schema_ if described is not None else None,
            schema_field="response_format.json_schema.schema",
            strict=described.strict if described is not None else None,
        )
    thinking = _thinking(body)
    if thinking is not None:
        options["enable_thinking"] = thinking
    set_tools(options, limits, tools=body.tools, choice=body.tool_choice, parallel=body.parallel_tool_calls)
    return options


def _thinking(body: ChatBody) -> bool | None:
    """Return whether the model may think first; None for the default."""
    template = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs is not None else None
    effort = None if body.reasoning_effort is None else body.reasoning_effort != "none"
    if template is not None and effort is not None and template != effort:
        raise field_error(
            "reasoning_effort", "chat_template_kwargs.enable_thinking contradicts it: give one of them"
        )
    return effort if template is None else template
