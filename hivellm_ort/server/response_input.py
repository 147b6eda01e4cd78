"""Converts the input items of `/v1/responses` to the messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hivellm_ort.server.errors import field_error
from hivellm_ort.server.schemas.responses import (
    CallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    RefusalText,
)

__all__ = ["messages_from_items"]

_Item = MessageItem | CallItem | OutputItem | ReasoningItem


def messages_from_items(items: Sequence[_Item], instructions: str | None = None) -> list[dict[str, Any]]:
    """Return the messages in the form of `/v1/chat/completions`.

    Reasoning, text and calls of one answer are separate items. They become one message of the assistant.

    Args:
        items: The items of `input`.
        instructions: The system message; None for none.

    Raises:
        ApiError: A part does not fit the role of its message, or a result has no call.
    """
    turns: list[dict[str, Any]]
    turns = [] if instructions is None else [{"role": "system", "content": instructions}]
    answer: dict[str, Any] | None = None  # the assistant's message that the next item may extend
    calls: set[str] = set()
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if isinstance(item, CallItem):
            answer = answer or _begun(turns)
            answer.setdefault("tool_calls", []).append(_call(item))
            calls.add(item.call_id)
        elif isinstance(item, ReasoningItem):
            thoughts = [part.text for part in item.content or ()]
            if not thoughts:
                continue
            if answer is None or answer["content"] is not None or "tool_calls" in answer:
                answer = _begun(turns)
            known = [answer["reasoning_content"]] if "reasoning_content" in answer else []
            answer["reasoning_content"] = "\n".join([*known, *thoughts])
        elif isinstance(item, MessageItem) and item.role == "assistant":
            if answer is None or answer["content"] is not None or "tool_calls" in answer:
                answer = _begun(turns)
            answer["content"] = _content(item, where)
        elif isinstance(item, MessageItem):
            answer = None
            turns.append({"role": item.role, "content": _content(item, where)})
        else:
            answer = None
            if item.call_id not in calls:
                raise field_error(
                    f"{where}.call_id", "no function_call before it has this id: send the call too"
                )
            turns.append(
                {
                    "role": "tool",
                    "tool_call_id": item.call_id,
                    "content": _as_content([part.text for part in item.output]),
                }
            )
    for turn in turns:
        if turn["content"] is None and "tool_calls" not in turn:
            turn["content"] = ""
    return turns


def _begun(turns: list[dict[str, Any]]) -> dict[str, Any]:
    turns.append({"role": "assistant", "content": None})
    return turns[-1]


def _call(item: CallItem) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _content(item: MessageItem, where: str) -> str | list[dict[str, Any]]:
    """Return the text of a message. Several parts stay separate parts."""
    if item.role != "assistant":
        for index, part in enumerate(item.content):
            if isinstance(part, OutputText | RefusalText):
                raise field_error(
                    f"{where}.content[{index}].type",
                    f"only the assistant has it, and the role is {item.role!r}",
                )
    return _as_content(
        [part.refusal if isinstance(part, RefusalText) else part.text for part in item.content]
    )


def _as_content(texts: Sequence[str]) -> str | list[dict[str, Any]]:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
