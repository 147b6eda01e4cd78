"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.options import GenerateOptions
from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.server.body_options import JSON_OBJECT, check_schema, options_of, per_answer
from hivellm_ort.server.errors import ERRORS, refused
from hivellm_ort.server.generation import Answers, unless_client_leaves
from hivellm_ort.server.models import choose
from hivellm_ort.server.options import ServerLimits
from hivellm_ort.server.schemas.chat import ChatBody, ResponseFormat
from hivellm_ort.server.state import state_of
from hivellm_ort.server.streaming import IDLE_SECONDS, EventStream, sent
from hivellm_ort.server.strict_json import StrictRoute
from hivellm_ort.server.tokens_told import TokenTexts, usage_of

__all__ = ["finish_reason", "router", "shown_logprobs"]

router = APIRouter(tags=["answers"], route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=ERRORS, response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation: at once, or as it is written (`stream`)."""
    state = state_of(request)
    options = _options(body, state.options.limits)
    chosen = await choose(state, body.model, messages=options.get("messages"), schema=body.schema_)
    asked = per_answer(options, body.n or 1)
    tokenizer = await asyncio.to_thread(state.manager.tokenizer, chosen.name) if body.logprobs else None
    made = _Made(chosen.name, TokenTexts(tokenizer) if tokenizer is not None else None)
    begun = Answers.begin(state, chosen.name, asked, steps=bool(body.stream))
    answers = await unless_client_leaves(request, begun)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(sent(state, made.chunks(answers, usage=usage)), answers, chosen.headers)
    results = await unless_client_leaves(request, answers.results())
    return JSONResponse(made.whole(results), headers=dict(chosen.headers))


def finish_reason(result: InferenceResult) -> str:
    """OpenAI's name of why an answer ended."""
    return "length" if result.finish_reason == "length" else "stop"


def shown_logprobs(result: InferenceResult) -> list[TokenLogprob]:
    """The probabilities of an answer's tokens, without that of the token which ended it."""
    logprobs = list(result.logprobs or ())
    return logprobs[:-1] if result.finish_reason == "eos" else logprobs


@dataclass(frozen=True)
class _Made:
    """Makes what the client gets of answers.

    Attributes:
        model: who answers.
        texts: of tokens, where log probabilities are wanted.
    """

    model: str
    texts: TokenTexts | None

    def whole(self, results: list[InferenceResult]) -> dict[str, Any]:
        """The answers in one document."""
        document = self._document("chat.completion", f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))
        warnings = [warning for result in results[:1] for warning in result.warnings]
        return {
            **document,
            "choices": [self._choice(index, result) for index, result in enumerate(results)],
            "usage": usage_of([results]),
            **({"warnings": warnings} if warnings else {}),
        }

    async def chunks(self, answers: Answers, *, usage: bool) -> AsyncIterator[dict[str, Any] | None]:
        """The answers as they are written.

        Args:
            answers: begun, with steps.
            usage: whether the last chunk has the counts of tokens.
        """
        document = self._document("chat.completion.chunk", f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))
        if usage:
            document["usage"] = None
        results: dict[int, InferenceResult] = {}
        begun: set[int] = set()
        held: dict[int, list[TokenLogprob]] = {}

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            if index not in begun:
                begun.add(index)
                delta = {"role": "assistant", "content": "", **delta}
            logprobs = held.pop(index, None) if self.texts is not None else None
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            if logprobs and self.texts is not None:
                choice["logprobs"] = {"content": self.texts.chat(logprobs), "refusal": None}
            return {**document, "choices": [choice]}

        async for event in answers.events(IDLE_SECONDS):
            if event is None:
                yield None
                continue
            index, what = event
            if isinstance(what, InferenceResult):
                results[index] = what
                yield chunk(index, {}, finish_reason(what))
                continue
            if what.logprob is not None and what.finish_reason != "eos":
                held.setdefault(index, []).append(what.logprob)
            if what.reasoning:
                yield chunk(index, {"reasoning_content": what.reasoning})
            if what.text:
                yield chunk(index, {"content": what.text})
        if usage:
            counts = usage_of([[results[index] for index in sorted(results)]])
            yield {**document, "choices": [], "usage": counts}

    def _choice(self, index: int, result: InferenceResult) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
        if result.reasoning:
            message["reasoning_content"] = result.reasoning
        logprobs = None
        if self.texts is not None:
            logprobs = {"content": self.texts.chat(shown_logprobs(result)), "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason(result),
        }

    def _document(self, kind: str, identity: str, created: int) -> dict[str, Any]:
        return {"id": identity, "object": kind, "created": created, "model": self.model}


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
    if body.tools or body.tool_choice not in (None, "none"):
        raise refused("tools", "calls of tools are not read from answers yet: leave them out")
    return options


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
