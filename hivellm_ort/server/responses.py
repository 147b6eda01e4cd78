"""`/v1/responses`: OpenAI's Responses API. Nothing is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.answer_fields import LogprobsFormatter
from hivellm_ort.server.errors import as_api_error, field_error
from hivellm_ort.server.generation import RunningAnswers, cancel_on_disconnect
from hivellm_ort.server.generation_options import (
    check_count,
    check_stream_options,
    sampling_options,
    set_response_format,
    set_tools,
)
from hivellm_ort.server.models import check_length, choose_expert
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.response_events import ResponseWriter
from hivellm_ort.server.response_input import messages_from_items
from hivellm_ort.server.schemas.responses import FunctionTool, ResponsesBody
from hivellm_ort.server.state import ServerState, server_state
from hivellm_ort.server.streaming import IDLE_SECONDS, STREAM_RESPONSES, EventStream, sse_events
from hivellm_ort.server.strict_route import StrictJSONRoute

__all__ = ["router"]

router = APIRouter(tags=["answers"], route_class=StrictJSONRoute)

_LOGPROBS = "message.output_text.logprobs"
_FIELDS = MappingProxyType(
    {"max_tokens": "max_output_tokens", "enable_thinking": "reasoning.effort", "system": "instructions"}
)
"""The names of options in this route, by the name of the option."""


@router.post("/v1/responses", responses=STREAM_RESPONSES, response_model=None)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """Answer a text or a conversation, in one document or as a stream of typed events (`stream`)."""
    state = server_state(request)
    options = _options(body, state.options.limits)
    check_length(state, "tools", options.get("tools"))
    chosen = await choose_expert(state, body.model, messages=options.get("messages"), schema=body.schema_)
    texts: LogprobsFormatter | None = None
    if options.get("logprobs") is not None:
        texts = await asyncio.to_thread(lambda: LogprobsFormatter(state.manager.tokenizer(chosen.name)))
    starting = RunningAnswers.start(state, chosen.name, [options], steps=True, fields=_FIELDS)
    answers = await cancel_on_disconnect(request, starting)
    parser = answers.call_parser(0) if body.tools else None
    writer = ResponseWriter(_described(body, chosen.name, answers.sampling(0)), texts, parser)
    if body.stream:
        return EventStream(
            sse_events(state, _events(state, writer, answers), named=True), answers, chosen.headers
        )
    with answers:
        await cancel_on_disconnect(request, _written(writer, answers))
    return JSONResponse(writer.response, headers=dict(chosen.headers))


async def _events(
    state: ServerState, writer: ResponseWriter, answers: RunningAnswers
) -> AsyncIterator[dict[str, Any] | None]:
    """Yield the events of an answer. None means that nothing came for a while."""
    for event in writer.begin():
        yield event
    try:
        async for happened in answers.events(IDLE_SECONDS):
            if happened is None:
                yield None
                continue
            for event in writer.push(happened[1]):
                yield event
    except Exception as error:  # the status has been sent already
        for event in writer.fail(as_api_error(error, state.remove_paths, began=True)):
            yield event


async def _written(writer: ResponseWriter, answers: RunningAnswers) -> None:
    """Write the whole response."""
    async for happened in answers.events():
        if happened is not None:
            for _ in writer.push(happened[1]):
                pass


def _options(body: ResponsesBody, limits: ServerLimits) -> GenerateOptions:
    """Return the options for a body.

    Raises:
        ApiError: A field exceeds a limit, or contradicts another.
    """
    check_stream_options(body)
    options = sampling_options(body, limits)
    check_count("max_output_tokens", body.max_output_tokens, limits.max_tokens)
    if body.max_output_tokens is not None:
        options["max_tokens"] = body.max_output_tokens
    options["messages"] = messages_from_items(body.input, body.instructions)
    if body.schema_ is not None:
        if body.instructions is not None:
            raise field_error(
                "schema", "it is part of the system message, which instructions replace: give one of them"
            )
        options["schema"] = body.schema_
    logprobs = _LOGPROBS in (body.include or ())
    if body.top_logprobs and not logprobs:
        raise field_error("top_logprobs", f"it needs include: add {_LOGPROBS!r} to include")
    if logprobs:
        options["logprobs"] = body.top_logprobs or 0
    form = body.text.format if body.text is not None else None
    if form is not None:
        if form.type != "json_schema" and form.schema_ is not None:
            raise field_error("text.format.schema", f"the type is {form.type!r}: make it 'json_schema'")
        set_response_format(
            options,
            limits,
            field="text.format",
            kind=form.type,
            schema=form.schema_,
            schema_field="text.format.schema",
            strict=form.strict,
        )
    if body.reasoning is not None and body.reasoning.effort is not None:
        options["enable_thinking"] = body.reasoning.effort != "none"
    choice = body.tool_choice
    set_tools(
        options,
        limits,
        tools=[_as_chat_tool(tool) for tool in body.tools or ()],
        choice=choice if choice is None or isinstance(choice, str) else _as_chat_choice(choice.name),
        parallel=body.parallel_tool_calls,
    )
    return options


def _as_chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _as_chat_choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _described(body: ResponsesBody, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a response that repeat its request, with the sampling options that are used."""
    form = body.text.format if body.text is not None else None
    choice = body.tool_choice or "auto"
    tools = [
        {"type": "function"}
        | {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
        for tool in body.tools or ()
    ]
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "model": model,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "text": {"format": form.model_dump(exclude_none=True) if form is not None else {"type": "text"}},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "user": body.user,
        **{
            name: sampling[name] for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        },
    }
