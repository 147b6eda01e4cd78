"""Messages and tools of callers: what is taken, and what is refused by its place."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from hivellm_ort.text.messages import checked_messages, checked_tools, question_of, text_of

QUESTION = {"role": "user", "content": "Q"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Role(enum.StrEnum):
    """A role as an application may have it."""

    USER = "user"


def test_a_conversation_is_copied() -> None:
    """What reaches a template is plain, whatever mappings and texts it was given in."""
    given = [
        MappingProxyType({"role": Role.USER, "content": ({"type": "text", "text": "Q"},), "extra": [1, 0.5]})
    ]
    checked = checked_messages(given)

    assert [{"role": "user", "content": [{"type": "text", "text": "Q"}], "extra": [1, 0.5]}] == checked
    assert [dict, str, list] == [type(checked[0]), type(checked[0]["role"]), type(checked[0]["content"])]
    assert [] == checked_messages(None) == checked_messages(())


def test_what_openais_clients_write_for_nothing_is_nothing() -> None:
    """None and an empty list of calls are left out; a call without arguments has an empty object."""
    nothing = {"tool_calls": None, "tool_call_id": None, "name": None}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}

    assert [QUESTION] == checked_messages([{**QUESTION, **nothing}])
    assert [QUESTION] == checked_messages([{**QUESTION, "tool_calls": []}])
    (turn,) = checked_messages([{"role": "assistant", "tool_calls": [call, {"name": "g"}]}])
    assert turn["content"] is None
    empty = {"name": "f", "arguments": {}}
    assert [{**call, "function": empty}, {**empty, "name": "g"}] == turn["tool_calls"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": None}, r": content must be a text, or a list of parts .* not NoneType"),
        ({"role": "assistant", "content": None, "tool_calls": []}, ": content must be a text"),
        ({"role": "user", "content": 5}, ": content must be a text, .* not int"),
        ({"role": "user", "content": {"type": "text"}}, ": content must be a text, .* not dict"),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            },
            r"\.content\[1\]: type is 'image_url'; only parts of type 'text' can be read",
        ),
        ({"role": "user", "content": ["a"]}, r"\.content\[0\]: a part must be .*, not str"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            r"\.content\[0\]: text must be a text, not NoneType",
        ),
        ({"role": "tool", "content": "2", "tool_call_id": 7}, ": tool_call_id must be a text, not int"),
        ({"role": "tool", "content": "2", "name": ["f"]}, ": name must be a text, not list"),
        (
            {"role": "user", "content": "a", "tool_calls": [CALL]},
            ": tool_calls are the assistant's; .* 'user'",
        ),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, r"\.tool_calls must be a list, not dict"),
        ({"role": "assistant", "tool_calls": ["f"]}, r"\.tool_calls\[0\] must be"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, r"\.tool_calls\[0\] must be"),
        (
            {"role": "assistant", "tool_calls": [CALL, {"function": {}}]},
            r"\.tool_calls\[1\]: the name .* is None",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            r"\.tool_calls\[0\]: arguments must be an object or its JSON text, not list",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "id": 3}]},
            r"\.tool_calls\[0\]: id must be a text, not int",
        ),
        ({**QUESTION, "extra": float("nan")}, r"\.extra is nan: JSON has no such number"),
    ],
)
def test_malformed_messages_are_named(message: Any, expected: str) -> None:
    """The error has the index of the turn, and the field."""
    with pytest.raises(ValueError, match=rf"^messages\[1\]{expected}"):
        checked_messages([QUESTION, message])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("Q", "^messages is str: it must be a list of dicts"),
        (QUESTION, "^messages is dict: it must be a list of dicts"),
        ([QUESTION, "Q"], r"^messages\[1\] is str: it must be a dict"),
        (
            [{**QUESTION, "extra": {"at": object()}}],
            r"^messages\[0\]\.extra\.at is object: pass what JSON has",
        ),
        ([{**QUESTION, "extra": [np.int64(1)]}], r"^messages\[0\]\.extra\[0\] is int64"),
        ([{**QUESTION, "extra": {1: 2}}], r"^messages\[0\]\.extra has the key 1: keys must be texts"),
        ([{**QUESTION, "content": b"Q"}], r"^messages\[0\]\.content is bytes"),
    ],
)
def test_what_is_no_json_is_named(messages: Any, expected: str) -> None:
    """Templates get nothing but what JSON has."""
    with pytest.raises(TypeError, match=expected):
        checked_messages(messages)


def test_endless_nesting_is_refused() -> None:
    """A value that holds itself is an error, not a crash."""
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(ValueError, match="levels deep"):
        checked_messages([{**QUESTION, "extra": loop}])


def test_tools_are_copied() -> None:
    """Both forms of a tool are taken as they are; none, and an empty list, are None."""
    tools = [TOOL, TOOL["function"]]
    checked = checked_tools(tuple(tools))

    assert tools == checked
    assert checked is not None
    assert checked[0] is not TOOL
    assert checked_tools(None) is checked_tools([]) is None


def root(x: float) -> float:
    """A function as transformers takes them."""
    return x


@pytest.mark.parametrize(
    ("tools", "error", "expected"),
    [
        (
            [TOOL, root],
            TypeError,
            r"^tools\[1\] is root, which is Python: pass its JSON schema, .*transformers.utils.get_json_schema",
        ),
        (root, TypeError, "^tools is function: it must be a list of dicts"),
        (TOOL, TypeError, "^tools is dict: it must be a list"),
        ("[]", TypeError, "^tools is str: it must be a list"),
        ([["f"]], TypeError, r"^tools\[0\] is list: it must be a dict"),
        ([{"type": "function"}], ValueError, r"^tools\[0\]: the name of the function is None"),
        (
            [{"type": "function", "function": {"name": ""}}],
            ValueError,
            r"^tools\[0\]: the name of the function is ''",
        ),
        ([{"function": ["f"]}], ValueError, r"^tools\[0\] must be"),
        ([{"name": "f", "parameters": {"of": int}}], TypeError, r"^tools\[0\]\.parameters\.of is type"),
    ],
)
def test_malformed_tools_are_named(tools: Any, error: type[Exception], expected: str) -> None:
    """The error has the index of the tool, and says what to pass."""
    with pytest.raises(error, match=expected):
        checked_tools(tools)


def test_texts_of_contents() -> None:
    """Parts are joined by line breaks, no content is empty; the last question is the user's last turn."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert ["a\nb", "c", "", ""] == [text_of(content) for content in (parts, "c", None, [])]
    assert "a\nb" == question_of(
        [QUESTION, {"role": "user", "content": parts}, {"role": "tool", "content": "2"}]
    )
    assert question_of([{"role": "system", "content": "S"}]) is question_of(None) is None
