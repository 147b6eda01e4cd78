"""Rewrites a conversation so that a chat template shows all of it.

Templates may drop or refuse system messages, tool calls or texts in parts. To find out, a conversation of the same
shape is rendered with marks in place of the texts. The result is cached per shape.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hivellm_ort.errors import InferenceError, OptionError
from hivellm_ort.jsonfiles.reading import parse_value
from hivellm_ort.text.budget import TemplateLimitError
from hivellm_ort.text.messages import SYSTEM_ROLES, function_of, text_of

__all__ = ["Conversation", "Forms"]

_LOG = logging.getLogger("hivellm_ort")

_MAX_SHAPES = 512


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as `checked_messages` and `checked_tools` return them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class _Form:
    """A form of conversations for a template.

    Attributes:
        moved: Indices of system messages that are moved to the beginning of the next user turn.
        joined: Whether content parts are joined to one text.
        empty: The value for missing content.
        arguments: Whether arguments of tool calls become objects or JSON texts.
        wrapped: Whether bare functions are wrapped into OpenAI's form of a tool.
    """

    moved: frozenset[int] = frozenset()
    joined: bool = True
    empty: Literal[""] | None = ""
    arguments: Literal["given", "object", "text"] = "given"
    wrapped: bool = False

    def write(self, conversation: Conversation) -> Conversation:
        """Return the conversation in this form. Raise OptionError if arguments cannot be converted."""
        messages, moved = [], []
        for index, message in enumerate(conversation.messages):
            content = message["content"]
            if index in self.moved:
                moved.append(text_of(content))
                continue
            if content is None:
                content = self.empty
            elif self.joined:
                content = text_of(content)
            if moved and message["role"] == "user":
                content = "".join(f"{text}\n\n" for text in moved if text) + text_of(content)
                moved = []
            turn = {**message, "content": content}
            if "tool_calls" in turn:
                place = f"messages[{index}].tool_calls"
                turn["tool_calls"] = [
                    self._call(call, f"{place}[{i}]") for i, call in enumerate(turn["tool_calls"])
                ]
            messages.append(turn)
        tools = conversation.tools
        if self.wrapped and tools is not None:
            tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        return Conversation(messages, tools)

    def _call(self, call: dict[str, Any], where: str) -> dict[str, Any]:
        function = function_of(call)
        arguments = function["arguments"]
        if self.arguments == "object" and isinstance(arguments, str):
            arguments = _object(arguments, where)
        elif self.arguments == "text" and isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        else:
            return call
        function = {**function, "arguments": arguments}
        return {**call, "function": function} if "function" in call else function


@dataclass(frozen=True)
class _Mark:
    """A word that stands for a text, a description of the text, and the advice if the template drops it."""

    word: str
    what: str
    instead: str | None = None

    def shown(self, text: str) -> bool:
        """Return whether a rendering contains it, not as JSON inside a JSON text."""
        return self.word in text and f'\\"{self.word}' not in text


class Forms:
    """Finds the form for each shape of conversation. Thread-safe.

    Args:
        render: Renders the template. It raises InferenceError.
        name: Source of the template, for messages.
        knows_developer: Whether the template knows the role `developer`. Else it is replaced by `system`.
    """

    def __init__(
        self, render: Callable[[Conversation], str], *, name: str, knows_developer: bool = False
    ) -> None:
        self._render = render
        self._name = name
        self._knows_developer = knows_developer
        self._found: dict[Any, tuple[_Form, str | None]] = {}

    def fit(self, conversation: Conversation) -> Conversation:
        """Return the conversation in a form that the template shows completely.

        It is unchanged if possible. Else system messages move to the next user turn, text parts are joined by line
        breaks, missing content becomes an empty text or None, and arguments of calls become objects or JSON texts.
        User and assistant turns and calls that no form shows are logged as a warning.

        Raises:
            InferenceError: No form shows the tools, a system message or the result of a tool.
            OptionError: The template needs a call's arguments as an object, and they are not the JSON text of one.
        """
        if not self._knows_developer:
            messages = [
                {**message, "role": "system"} if message["role"] == "developer" else message
                for message in conversation.messages
            ]
            conversation = Conversation(messages, conversation.tools)
        shape = _shape(conversation)
        if shape is None:
            return conversation
        found = self._found.get(shape)
        if found is None:
            found = self._find(conversation)
            if len(self._found) >= _MAX_SHAPES:
                self._found.clear()
            self._found[shape] = found
        form, fault = found
        if fault is not None:
            raise InferenceError(fault)
        return form.write(conversation)

    def _find(self, conversation: Conversation) -> tuple[_Form, str | None]:
        """Return the first form that loses nothing, else the one that loses least, and its fault."""
        probe, marks = _probe(conversation)
        best: tuple[_Form, list[_Mark]] | None = None
        for form in _forms(conversation):
            lost = self._lost(form, probe, marks)
            if lost is not None and (best is None or len(lost) < len(best[1])):
                best = form, lost
                if not lost:
                    break
        if best is None:
            return _Form(), None  # the template itself reports why
        form, lost = best
        for mark in lost:
            fault = f"the {self._name} does not show {mark.what} to the model"
            if mark.instead is not None:
                return form, f"{fault}: {mark.instead}"
        for what in dict.fromkeys(mark.what for mark in lost):
            _LOG.warning("the %s does not show %s to the model", self._name, what)
        if form.moved:
            _LOG.info("the %s shows no system message here: it goes before the user's next words", self._name)
        return form, None

    def _lost(self, form: _Form, probe: Conversation, marks: list[_Mark]) -> list[_Mark] | None:
        """Return the marks that the template drops in this form; None if it refuses the form or leaks internals."""
        try:
            text = self._render(form.write(probe))
        except TemplateLimitError:
            raise  # every form would take as long
        except InferenceError:
            return None
        if form.empty is None and "None" in text:
            return None
        if not form.joined and any(leak in text for leak in ("'text'", '"text"')):
            return None  # the parts were written as Python or JSON
        return [mark for mark in marks if not mark.shown(text)]


def _forms(conversation: Conversation) -> Iterator[_Form]:
    """Yield the distinct forms of a conversation, in order of preference."""
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    systems = {i for i, message in enumerate(messages[: last + 1]) if message["role"] in SYSTEM_ROLES}
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    kinds = {type(function_of(call)["arguments"]) for call in calls}
    others: dict[type, Literal["object", "text"]] = {str: "object", dict: "text"}
    contents = [message["content"] for message in messages]
    yield from itertools.starmap(
        _Form,
        itertools.product(
            dict.fromkeys((frozenset[int](), frozenset(systems - {0}), frozenset(systems))),
            (False, True) if any(isinstance(content, list) for content in contents) else (True,),
            ("", None) if None in contents else ("",),
            ("given", *(others[kind] for kind in others if kind in kinds)),
            (False, True) if any("function" not in tool for tool in conversation.tools or ()) else (False,),
        ),
    )


def _shape(conversation: Conversation) -> Any:
    """Return the shape of a conversation, which decides its form; None if it has only questions and answers."""
    plain = conversation.tools is None
    turns = []
    for message in conversation.messages:
        content = message["content"]
        calls = message.get("tool_calls", ())
        plain = plain and message["role"] in ("user", "assistant") and isinstance(content, str) and not calls
        turns.append(
            (
                message["role"],
                len(content) if isinstance(content, list) else type(content),
                tuple(("function" in call, type(function_of(call)["arguments"])) for call in calls),
                "name" in message,
                "tool_call_id" in message,
            )
        )
    tools = conversation.tools and tuple("function" in tool for tool in conversation.tools)
    return None if plain else (tuple(turns), tools)


def _probe(conversation: Conversation) -> tuple[Conversation, list[_Mark]]:
    """Return a conversation of the same shape with marks as texts, and the marks."""
    marks: list[_Mark] = []

    def mark(what: str, instead: str | None = None) -> str:
        # Nine letters and digits, because some templates accept only such ids of calls.
        marks.append(_Mark(f"mark{len(marks):05}", what, instead))
        return marks[-1].word

    messages = []
    for index, message in enumerate(conversation.messages):
        role, content = message["role"], message["content"]
        told = f"messages[{index}], of role {role!r},"
        instead = None if role in ("user", "assistant") else "write its text into a turn of the user"
        if isinstance(content, list):
            content = [{"type": "text", "text": mark(told, instead)} for _ in content]
        elif content is not None:
            content = mark(told, instead)
        turn: dict[str, Any] = {"role": role, "content": content}
        turn |= {key: f"name{index:05}" for key in ("name", "tool_call_id") if key in message}
        if "tool_calls" in message:
            turn["tool_calls"] = [
                _marked_call(call, partial(mark, f"messages[{index}].tool_calls"))
                for call in message["tool_calls"]
            ]
        messages.append(turn)
    instead = "leave out tools, or describe them in the system message"
    tools = [_marked_tool(tool, mark("the tools", instead)) for tool in conversation.tools or ()]
    return Conversation(messages, tools or None), marks


def _marked_call(call: dict[str, Any], mark: Callable[[], str]) -> dict[str, Any]:
    name = mark()
    arguments: Any = {mark(): "1"}
    if isinstance(function_of(call)["arguments"], str):
        arguments = json.dumps(arguments)
    function = {"name": name, "arguments": arguments}
    head = {"id": name, "type": "function"}  # some templates show only the id
    return {**head, "function": function} if "function" in call else {**head, **function}


def _marked_tool(tool: dict[str, Any], name: str) -> dict[str, Any]:
    properties = {"argument": {"type": "string", "description": "argument"}}
    parameters = {"type": "object", "properties": properties, "required": ["argument"]}
    function = {"name": name, "description": "function", "parameters": parameters}
    return {"type": "function", "function": function} if "function" in tool else function


def _object(text: str, where: str) -> dict[str, Any]:
    """Parse the arguments of a call, which must be the JSON text of an object."""
    try:
        value = parse_value(text)
    except ValueError as error:
        raise OptionError(
            f"{where}: the chat template needs arguments as an object, and they are not JSON ({error})"
        ) from error
    if isinstance(value, dict):
        return value
    raise OptionError(
        f"{where}: the chat template needs arguments as an object, and they are a {type(value).__name__}"
    )
