"""Server-sent events: chunks of answers, errors in the middle of them, and the end."""

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
"""Seconds without a chunk after which a comment is sent, so that nothing between takes the connection for dead."""

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {"description": "The answer, or with `stream` its chunks.", "content": {"text/event-stream": {}}},
}
"""What a route that may stream answers, for its documentation."""

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(EventSourceResponse):
    """A response of server-sent events. The answers end with it, also where the client goes away.

    Args:
        events: the bytes of the events.
        answers: what they tell of.
        headers: of the response.
    """

    def __init__(
        self, events: AsyncIterator[bytes], answers: RunningAnswers, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(events, headers={**_HEADERS, **(headers or {})})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with contextlib.suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        finally:
            self._answers.abandon()


def json_event(document: Any, name: str | None = None) -> bytes:
    """An event with a JSON document, and with a name where it is given."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=name)


async def sse_events(
    state: ServerState, chunks: AsyncIterator[dict[str, Any] | None], *, named: bool = False
) -> AsyncIterator[bytes]:
    """The events of a stream: a chunk each, an error object where one is raised, and `[DONE]` at the end.

    Args:
        state: of the application.
        chunks: the chunks; None where nothing happened for a while.
        named: whether the type of a chunk is the name of its event.
    """
    try:
        async for chunk in chunks:
            if chunk is None:
                yield format_sse_event(comment="waiting")
            else:
                yield json_event(chunk, chunk["type"] if named else None)
    except Exception as error:  # the status was sent long ago
        yield json_event(as_api_error(error, state.remove_paths, began=True).body)
    yield format_sse_event(data_str="[DONE]")
