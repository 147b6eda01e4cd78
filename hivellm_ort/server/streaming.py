"""Responses: one document, or server-sent events with chunks, errors after the first chunk, and the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from hivellm_ort.options import GenerateOptions
from hivellm_ort.result import InferenceResult
from hivellm_ort.server.errors import ERRORS, as_api_error
from hivellm_ort.server.generation import RunningAnswers, cancel_on_disconnect
from hivellm_ort.server.models import ChosenExpert
from hivellm_ort.server.schemas.common import GenerationBody
from hivellm_ort.server.state import ServerState, server_state

__all__ = ["IDLE_SECONDS", "STREAM_RESPONSES", "EventStream", "answer", "json_event", "sse_events"]

IDLE_SECONDS = 15.0
"""Seconds without a chunk after which a comment is sent, so that no proxy closes an idle connection."""

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {"description": "The answer, or with `stream` its chunks.", "content": {"text/event-stream": {}}},
}
"""The responses of a route that can stream, for the OpenAPI document."""

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(EventSourceResponse):
    """A response of server-sent events. When it ends or its client disconnects, its answers are cancelled.

    Args:
        events: The bytes of the events.
        answers: The answers of the events.
        headers: Headers of the response.
    """

    def __init__(
        self, events: AsyncIterator[bytes], answers: RunningAnswers, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(events, headers={**_HEADERS, **(headers or {})})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            with contextlib.suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        finally:
            self._answers.abandon()


class _Formatter(Protocol):
    """Formats the answers of one request."""

    def whole(self, results: list[InferenceResult]) -> dict[str, Any]:
        """Return all answers in one document."""

    def chunks(self, answers: RunningAnswers, *, usage: bool) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the chunks of the answers. None means that nothing came for a while."""


async def answer(
    request: Request,
    body: GenerationBody,
    chosen: ChosenExpert,
    options: Sequence[GenerateOptions],
    formatter: _Formatter,
) -> Response:
    """Generate the answers of a request, and return them in one document or as a stream.

    Args:
        request: The request. Its body must have been read.
        body: The body. It says whether to stream.
        chosen: The expert.
        options: The options of each answer.
        formatter: Formats the answers.

    Raises:
        ApiError: As for `RunningAnswers.start` and `RunningAnswers.results`.
        ExpertError: An answer failed.
        ClientDisconnect: The client disconnected.
    """
    state = server_state(request)
    starting = RunningAnswers.start(state, chosen.name, options, steps=bool(body.stream))
    answers = await cancel_on_disconnect(request, starting)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(sse_events(state, formatter.chunks(answers, usage=usage)), answers, chosen.headers)
    with answers:
        results = await cancel_on_disconnect(request, answers.results())
    return JSONResponse(formatter.whole(results), headers=dict(chosen.headers))


def json_event(document: Any, name: str | None = None) -> bytes:
    """Return an event with a JSON document, and with a name if it is given."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=name)


async def sse_events(
    state: ServerState, chunks: AsyncIterator[dict[str, Any] | None], *, named: bool = False
) -> AsyncIterator[bytes]:
    """Yield the events of a stream: one per chunk, an error object if one is raised, and `[DONE]` at the end.

    Args:
        state: The state of the application.
        chunks: The chunks. None means that nothing came for a while.
        named: Whether events have the type of the chunk as their name.
    """
    try:
        async for chunk in chunks:
            if chunk is None:
                yield format_sse_event(comment="waiting")
            else:
                yield json_event(chunk, chunk["type"] if named else None)
    except Exception as error:  # the status has been sent already
        yield json_event(as_api_error(error, state.remove_paths, began=True).body)
    yield format_sse_event(data_str="[DONE]")
