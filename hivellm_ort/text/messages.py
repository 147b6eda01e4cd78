"""Checks messages and tools in the form of OpenAI's API, and converts them to plain JSON types.

Templates come from packages, so they get only copies made of lists, dicts, texts, numbers, booleans and None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hivellm_ort.errors import OptionError, OptionTypeError

__all__ = [
    "ROLES",
    "SYSTEM_ROLES",
    "checked_messages",
    "checked_tools",
    "function_of",
    "question_of",
    "text_of",
]

SYSTEM_ROLES = ("system", "developer")
"""Roles of instructions to the model. OpenAI's API renamed `system` to `developer`."""

ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")

_MAX_DEPTH = 64


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Check a conversation and return a copy.

    `content` is a text, a list of parts `{"type": "text", "text": …}`, or None in a turn of the assistant that has
    `tool_calls`. `tool_calls`, `tool_call_id` and `name` may be None, and `tool_calls` may be empty, which means
    absent. Arguments of a call are an object or its JSON text. Missing arguments become an empty object.

    Args:
        messages: The turns, or None. Unknown keys are kept for the template.

    Raises:
        OptionTypeError: The messages are not a list, a turn is not a mapping, or a value is not JSON.
        OptionError: A role, a content or a tool call is malformed. Both errors name the turn and the field.
    """
    if messages is None:
        return []
    if not isinstance(messages, list | tuple):
        raise OptionTypeError(
            f"messages is {_kind(messages)}: it must be a list of dicts with role and content"
        )
    return [_checked_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def checked_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check tools and return a copy; None if there are none.

    Args:
        tools: JSON schemas of functions, each as `{"type": "function", "function": {"name": …, …}}` or the function
            alone; an empty list is the same as None.

    Raises:
        OptionTypeError: They are not a list of mappings, or a value is not JSON.
        OptionError: A function has no name.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise OptionTypeError(f"tools is {_kind(tools)}: it must be a list of dicts, one per function")
    return [_checked_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)] or None


def text_of(content: Any) -> str:
    """Return a checked content as one text. Parts are joined by line breaks; None is empty."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def question_of(messages: Any) -> str | None:
    """Return the text of the last user turn, or None. Raises as `checked_messages`."""
    turns = reversed(checked_messages(messages))
    return next((text_of(turn["content"]) for turn in turns if turn["role"] == "user"), None)


def function_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the function of a tool or a call: its `function`, else the entry itself."""
    function: dict[str, Any] = entry.get("function", entry)
    return function


def _checked_turn(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise OptionTypeError(f"{where} is {_kind(message)}: it must be a dict with role and content")
    turn: dict[str, Any] = _plain(message, where)
    for key in ("tool_calls", "tool_call_id", "name"):
        if turn.get(key, 0) in (None, []):
            del turn[key]
    role, calls, content = turn.get("role"), turn.get("tool_calls"), turn.get("content")
    _require(role in ROLES, f"{where}: role is {role!r}; it must be one of {', '.join(ROLES)}")
    for key in ("tool_call_id", "name"):
        value = turn.get(key, "")
        _require(isinstance(value, str), f"{where}: {key} must be a text, not {_kind(value)}")
    if calls is not None:
        _require(role == "assistant", f"{where}: tool_calls are the assistant's; the role here is {role!r}")
        _check_calls(f"{where}.tool_calls", calls)
    if not isinstance(content, str) and not (content is None and calls):
        _check_parts(where, content)
    return {**turn, "content": content}


def _check_parts(where: str, content: Any) -> None:
    told = f"{where}: content must be a text, or a list of parts of type 'text', not {_kind(content)}"
    _require(isinstance(content, list), told)
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        told = f'{place}: a part must be {{"type": "text", "text": …}}, not {_kind(part)}'
        _require(isinstance(part, dict), told)
        kind, text = part.get("type"), part.get("text")
        _require(kind == "text", f"{place}: type is {kind!r}; only parts of type 'text' can be read")
        _require(isinstance(text, str), f"{place}: text must be a text, not {_kind(text)}")


def _check_calls(where: str, calls: Any) -> None:
    _require(isinstance(calls, list), f"{where} must be a list, not {_kind(calls)}")
    for index, call in enumerate(calls):
        place = f"{where}[{index}]"
        function = _checked_function(place, call)
        arguments, call_id = function.get("arguments"), call.get("id", "")
        if arguments in (None, ""):
            function["arguments"] = arguments = {}
        told = f"{place}: arguments must be an object or its JSON text, not {_kind(arguments)}"
        _require(isinstance(arguments, dict | str), told)
        _require(isinstance(call_id, str), f"{place}: id must be a text, not {_kind(call_id)}")


def _checked_tool(where: str, tool: Any) -> dict[str, Any]:
    if callable(tool):
        name = getattr(tool, "__name__", _kind(tool))
        raise OptionTypeError(
            f"{where} is {name}, which is Python: pass its JSON schema, "
            '{"type": "function", "function": {"name": …, "description": …, "parameters": …}}; '
            "transformers.utils.get_json_schema writes it for a function"
        )
    if not isinstance(tool, Mapping):
        raise OptionTypeError(f"{where} is {_kind(tool)}: it must be a dict, the JSON schema of a function")
    copy: dict[str, Any] = _plain(tool, where)
    _checked_function(where, copy)
    return copy


def _checked_function(where: str, entry: Any) -> dict[str, Any]:
    """Return the function of a tool or call after checking its name."""
    function = entry.get("function", entry) if isinstance(entry, dict) else entry
    _require(isinstance(function, dict), f'{where} must be {{"type": "function", "function": {{"name": …}}}}')
    name = function.get("name")
    told = f"{where}: the name of the function is {name!r}; it must be a text"
    _require(isinstance(name, str) and name != "", told)
    checked: dict[str, Any] = function
    return checked


def _require(sound: bool, otherwise: str) -> None:
    if not sound:
        raise OptionError(otherwise)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy of a value with only the types of `json.loads`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # also for an Enum of texts
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise OptionError(f"{where} is {value}: JSON has no such number")
        return float(value)
    if depth == _MAX_DEPTH:
        raise OptionError(f"{where} lies {depth} levels deep: that is deeper than messages and tools may be")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise OptionTypeError(f"{where} has the key {key!r}: keys must be texts")
        return {str.__str__(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise OptionTypeError(
        f"{where} is {_kind(value)}: pass what JSON has: texts, numbers, booleans, None, lists, dicts"
    )


def _kind(value: Any) -> str:
    return type(value).__name__
