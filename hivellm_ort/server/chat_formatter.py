"""Formats answers as documents and chunks of `/v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.server.answer_fields import (
    LogprobsFormatter,
    finish_reason,
    shown_logprobs,
    timings_of,
    usage_of,
    warnings_field,
)
from hivellm_ort.server.generation import RunningAnswers
from hivellm_ort.server.streaming import IDLE_SECONDS
from hivellm_ort.serving.generation import Step
from hivellm_ort.tools.parser import ArgumentsDelta, CallEvent, CallStarted, TextDelta, ToolCallParser

__all__ = ["ChatFormatter"]


@dataclass(frozen=True)
class ChatFormatter:
    """Formats the answers of one request.

    Attributes:
        model: The name of the expert.
        texts: Formats log probabilities; None if the request asks for none.
        calls: Whether the request has tools.
    """

    model: str
    texts: LogprobsFormatter | None
    calls: bool

    def whole(self, results: list[InferenceResult]) -> dict[str, Any]:
        """Return all answers in one document."""
        return {
            **self._document("chat.completion"),
            "choices": [self._choice(index, result) for index, result in enumerate(results)],
            "usage": usage_of([results]),
            **warnings_field(results),
        }

    async def chunks(self, answers: RunningAnswers, *, usage: bool) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the chunks of the answers. None means that nothing came for a while.

        Args:
            answers: The running answers, with steps.
            usage: Whether the last chunk has the token usage.
        """
        document = {**self._document("chat.completion.chunk"), **({"usage": None} if usage else {})}
        open_choices: dict[int, _OpenChoice] = {}
        results: dict[int, InferenceResult] = {}
        async for event in answers.events(IDLE_SECONDS):
            if event is None:
                yield None
                continue
            index, what = event
            if index not in open_choices:
                parser = answers.call_parser(index) if self.calls else None
                open_choices[index] = _OpenChoice(index, self.texts, parser)
            if isinstance(what, InferenceResult):
                results[index] = what
                choices = open_choices[index].end(what)
            else:
                choices = open_choices[index].add(what)
            for choice in choices:
                yield {**document, "choices": [choice]}
        if usage:
            counts = usage_of([[results[index] for index in sorted(results)]])
            yield {**document, "choices": [], "usage": counts}

    def _choice(self, index: int, result: InferenceResult) -> dict[str, Any]:
        message: dict[str, Any] = {**result.message, "refusal": None}
        if result.reasoning:
            message["reasoning_content"] = result.reasoning
        logprobs = None
        if self.texts is not None:
            logprobs = {"content": self.texts.chat(shown_logprobs(result)), "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _reason(result),
            "timings": timings_of(result),
        }

    def _document(self, kind: str) -> dict[str, Any]:
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": self.model}


class _OpenChoice:
    """One unfinished answer. Makes the choices of its chunks."""

    def __init__(self, index: int, texts: LogprobsFormatter | None, parser: ToolCallParser | None) -> None:
        self._index, self._texts, self._parser = index, texts, parser
        self._begun = False
        self._held: list[TokenLogprob] = []  # of tokens whose text is still held back

    def add(self, step: Step) -> Iterator[dict[str, Any]]:
        """Yield the choices of one step."""
        if step.logprob is not None and step.finish_reason != "eos":
            self._held.append(step.logprob)
        if step.reasoning:
            yield self._choice({"reasoning_content": step.reasoning})
        if step.text and self._parser is None:
            yield self._choice({"content": step.text})
        elif step.text and self._parser is not None:
            yield from map(self._choice, _deltas(self._parser.push(step.text)))

    def end(self, result: InferenceResult) -> Iterator[dict[str, Any]]:
        """Yield the text that was held back, and the finish reason."""
        if self._parser is not None:
            yield from map(self._choice, _deltas(self._parser.flush()))
        yield {**self._choice({}, _reason(result)), "timings": timings_of(result)}

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if not self._begun:
            self._begun = True
            # Clients concatenate deltas: an answer that is only a call must not begin with an empty text.
            first: dict[str, Any] = {"role": "assistant"}
            delta = {**first, **delta} if "tool_calls" in delta else {**first, "content": "", **delta}
        logprobs = None
        if self._texts is not None and self._held:
            logprobs = {"content": self._texts.chat(self._held), "refusal": None}
            self._held = []
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _reason(result: InferenceResult) -> str:
    """Return OpenAI's finish reason."""
    reason = finish_reason(result)
    return "tool_calls" if result.tool_calls and reason == "stop" else reason


def _deltas(events: Iterable[CallEvent]) -> Iterator[dict[str, Any]]:
    """Yield text and calls as deltas of a message."""
    for event in events:
        if isinstance(event, TextDelta):
            yield {"content": event.text}
        elif isinstance(event, CallStarted):
            function = {"name": event.name, "arguments": ""}
            yield {
                "tool_calls": [
                    {"index": event.index, "id": event.id, "type": "function", "function": function}
                ]
            }
        elif isinstance(event, ArgumentsDelta):
            yield {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
