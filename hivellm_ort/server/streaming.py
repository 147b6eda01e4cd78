"""Server-sent events: chunks, errors after the first chunk, and the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from hivellm_ort.server.errors import ERRORS, as_api_error
from hivellm_ort.server.generation import RunningAnswers
from hivellm_ort.server.state import ServerState

__all__ = ["IDLE_SECONDS", "STREAM_RESPONSES", "EventStream", "json_event", "sse_events"]

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
