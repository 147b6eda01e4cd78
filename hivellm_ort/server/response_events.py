"""Makes the typed events of `/v1/responses`, and the response document from them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.server.answer_fields import LogprobsFormatter, finish_reason, warnings_field
from hivellm_ort.server.errors import ApiError
from hivellm_ort.serving.generation import Step
from hivellm_ort.tools.parser import (
    ArgumentsDelta,
    CallEnded,
    CallEvent,
    CallStarted,
    TextDelta,
    ToolCallParser,
)

__all__ = ["ResponseWriter"]

_Events = Iterator[dict[str, Any]]


class ResponseWriter:
    """Makes a response from the steps of an answer.

    Args:
        described: Fields of the response that repeat its request.
        texts: Formats log probabilities; None if the request asks for none.
        parser: Separates tool calls from text; None if there are no tools.

    Attributes:
        response: The document so far.
    """

    def __init__(
        self, described: Mapping[str, Any], texts: LogprobsFormatter | None, parser: ToolCallParser | None
    ) -> None:
        self.response: dict[str, Any] = {
            "id": _identity("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **described,
        }
        self._texts, self._parser = texts, parser
        self._open = False  # whether the last item is unfinished
        self._held: list[TokenLogprob] = []  # of tokens whose text is still held back
        self._number = 0

    def begin(self) -> _Events:
        """Yield the first events."""
        yield self._event("response.created", response=self._copy())
        yield self._event("response.in_progress", response=self._copy())

    def push(self, event: Step | InferenceResult) -> _Events:
        """Yield the events of a step, or of the result at the end."""
        return self._end(event) if isinstance(event, InferenceResult) else self._add(event)

    def _add(self, step: Step) -> _Events:
        """Yield the events of one step."""
        if step.logprob is not None and step.finish_reason != "eos" and not step.thinking:
            self._held.append(step.logprob)
        if step.reasoning:
            yield from self._write("reasoning", step.reasoning)
        if step.text and self._parser is None:
            yield from self._write("message", step.text)
        elif step.text and self._parser is not None:
            yield from self._convert(self._parser.push(step.text))

    def _end(self, result: InferenceResult) -> _Events:
        """Yield the text that was held back, and the end of the response."""
        if self._parser is not None:
            yield from self._convert(self._parser.flush())
        cut = finish_reason(result) == "length"
        if not self.response["output"]:
            yield from self._start("message")
        if self._held and self._open and self._item["type"] == "message":
            yield from self._write("message", "")
        yield from self._close("incomplete" if cut else "completed")
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": _usage(result),
            **warnings_field([result]),
        }
        yield self._event(f"response.{self.response['status']}", response=self._copy())

    def fail(self, error: ApiError) -> _Events:
        """Yield the end of a response that failed."""
        code = (
            "server_error" if error.status_code >= 500 else "invalid_prompt"
        )  # no other code of OpenAI fits
        if self._open:
            self._item["status"] = "incomplete"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.detail}}
        yield self._event("response.failed", response=self._copy())

    @property
    def _item(self) -> dict[str, Any]:
        item: dict[str, Any] = self.response["output"][-1]
        return item

    def _convert(self, events: Iterable[CallEvent]) -> _Events:
        """Yield the events of text and calls."""
        for event in events:
            if isinstance(event, TextDelta):
                yield from self._write("message", event.text)
            elif isinstance(event, CallStarted):
                yield from self._close("completed")
                call = {"call_id": event.id, "name": event.name, "arguments": ""}
                yield from self._start("function_call", call)
            elif isinstance(event, ArgumentsDelta):
                self._held = []  # only text has log probabilities
                self._item["arguments"] += event.text
                yield self._about("response.function_call_arguments.delta", delta=event.text)
            elif isinstance(event, CallEnded):
                self._held = []
                yield from self._close("completed" if event.call.complete else "incomplete")

    def _write(self, kind: str, text: str) -> _Events:
        """Add text to a message or to reasoning. Begin an item if the last one has another type."""
        if not self._open or self._item["type"] != kind:
            yield from self._close("completed")
            yield from self._start(kind)
        part = self._item["content"][0]
        part["text"] += text
        if kind == "reasoning":
            yield self._about("response.reasoning_text.delta", content_index=0, delta=text)
            return
        logprobs = self._texts.chat(self._held) if self._texts is not None else []
        self._held = []
        part["logprobs"] += logprobs
        yield self._about("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _start(self, kind: str, fields: Mapping[str, Any] | None = None) -> _Events:
        """Begin an item."""
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item: dict[str, Any] = {
            "id": _identity(prefix),
            "type": kind,
            "status": "in_progress",
            **(fields or {}),
        }
        part: dict[str, Any] | None = None
        if kind == "reasoning":
            item |= {"summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        elif kind == "message":
            item |= {"role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.response["output"].append(item)
        self._open = True
        yield self._of_item("response.output_item.added", item=_copied(item))
        if part is not None:
            item["content"].append(part)
            yield self._about("response.content_part.added", content_index=0, part=_copied(part))

    def _close(self, status: str) -> _Events:
        """End the unfinished item, if there is one."""
        if not self._open:
            return
        item = self._item
        if item["type"] == "function_call":
            yield self._about("response.function_call_arguments.done", arguments=item["arguments"])
        else:
            part = item["content"][0]
            if item["type"] == "reasoning":
                yield self._about("response.reasoning_text.done", content_index=0, text=part["text"])
            else:
                yield self._about(
                    "response.output_text.done",
                    content_index=0,
                    text=part["text"],
                    logprobs=list(part["logprobs"]),
                )
            yield self._about("response.content_part.done", content_index=0, part=_copied(part))
        item["status"] = status
        self._open = False
        yield self._of_item("response.output_item.done", item=_copied(item))

    def _about(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return an event about the content of the last item."""
        return self._of_item(kind, item_id=self._item["id"], **fields)

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, output_index=len(self.response["output"]) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _copy(self) -> dict[str, Any]:
        return {**self.response, "output": [_copied(item) for item in self.response["output"]]}


def _copied(item: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an item or a part. The original changes before the event is sent."""
    copy = dict(item)
    for name in ("content", "logprobs"):
        if name in copy:
            copy[name] = [_copied(inner) for inner in copy[name]]
    return copy


def _identity(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _usage(result: InferenceResult) -> dict[str, Any]:
    return {
        "input_tokens": result.prompt_tokens,
        # OpenAI charges for writing a prefix to the cache; here it is free.
        "input_tokens_details": {"cached_tokens": result.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": result.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": result.reasoning_tokens},
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }
