"""Bodies of requests, and parsers of responses."""

from __future__ import annotations

import json
from typing import Any

import httpx

QUESTION = "select the users"


def chat(question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """Return the body of a request to `/v1/chat/completions`."""
    return {"model": "sql", "messages": [{"role": "user", "content": question}], **fields}


def chunks(text: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream, and check its end."""
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert "[DONE]" == events.pop()
    return [json.loads(event) for event in events]


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, and check its end and the name and number of each event."""
    *blocks, last, nothing = text.split("\n\n")
    assert ("data: [DONE]", "") == (last, nothing)
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (f"event: {event['type']}", number) == (name, event["sequence_number"])
        found.append(event)
    return found


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error object of a response, and check that it has all of OpenAI's fields."""
    document = response.json()
    assert {"error"} == set(document)
    assert {"message", "type", "param", "code"} == set(document["error"])
    error: dict[str, Any] = document["error"]
    return error
