"""Reads tool calls from an answer, piece by piece."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from hivellm_ort.result import ToolCall
from hivellm_ort.tools.formats import CallFormat
from hivellm_ort.tools.functiongemma import parse_arguments
from hivellm_ort.tools.json_text import (
    SPACE,
    IncompleteTextError,
    ObjectEnd,
    TextReader,
    UnexpectedTextError,
    is_object,
)

__all__ = [
    "ArgumentsDelta",
    "CallEnded",
    "CallEvent",
    "CallIds",
    "CallStarted",
    "TextDelta",
    "ToolCallParser",
    "read_calls",
]

# Most characters before the arguments, with the arguments if the name comes last: each piece parses them again.
_LONGEST_HEAD = 16_384
_NAME = re.compile(r"[\w.:/-]+")
_WORD = re.compile(r"\w+")
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class TextDelta:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """The beginning of a call with its name. `index` counts the calls of the answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """The end of a call, with the whole call. `call.complete` is false if the call was cut off."""

    index: int
    call: ToolCall


CallEvent: TypeAlias = TextDelta | CallStarted | ArgumentsDelta | CallEnded


class CallIds:
    """Random ids of the calls of one answer. The same index always has the same id.

    They are `call_` and 24 letters and digits. Templates of Mistral accept only ids of nine letters and digits.

    Args:
        family: The format in which the model writes calls.
    """

    def __init__(self, family: str | None) -> None:
        self._short = family in ("mistral", "mistral_args")
        self._ids: dict[int, str] = {}

    def __call__(self, index: int) -> str:
        """Return the id of the call with this index, from 0."""
        length, prefix = (9, "") if self._short else (24, "call_")
        # Several threads may ask at once.
        return self._ids.setdefault(index, prefix + "".join(secrets.choice(_LETTERS) for _ in range(length)))


class ToolCallParser:
    """Separates the calls in an answer from its text, while the answer arrives.

    The division into pieces changes only the lengths of the deltas, not the events of `push` and `flush`. Nothing
    raises, and no text is lost:

    - A text that begins like a call, but is not a call, is text.
    - A call that is cut off after its name ends with `complete` false. A call that is cut off earlier is text.
    - White space and markers around a call are left out. Without a call, the text is the whole answer.

    Args:
        call_format: The model's format of calls; None if the whole answer is text.
        names: The names of the tools. `llama3` has no marker, so an object with another name is text. None for any.
        new_id: Returns the id of the call with an index. Default: a random id.
    """

    def __init__(
        self,
        call_format: CallFormat | None,
        *,
        names: Collection[str] | None = None,
        new_id: Callable[[int], str] | None = None,
    ) -> None:
        self._family = call_format.family if call_format is not None else None
        self._marker = call_format.form.marker if call_format is not None else ""
        self._names = names
        self._new_id = new_id or CallIds(self._family)
        self._held = ""
        self._space = ""  # white space that may be followed by a call
        self._opened = ""  # the text before the head of a possible call
        self._listed = False  # whether the call is in a JSON list
        self._after_call = False  # only white space has come since the last call
        self._call = ("", "")  # id and name
        self._arguments: list[str] = []
        self._end = ObjectEnd()
        self._count = 0
        self._state = self._head if self._family == "llama3" else self._text
        self._events: list[CallEvent] = []

    def push(self, piece: str) -> list[CallEvent]:
        """Take the next piece of the answer, and return the events that are certain now."""
        self._held += piece
        while self._state():
            pass
        return self._taken()

    def flush(self) -> list[CallEvent]:
        """Return the last events. Call this once, after the last piece of the answer."""
        held, self._held = self._held, ""
        if self._state == self._head:
            self._say(self._space + self._opened + held, last=True)
        elif self._state in (self._object, self._body):
            if held:
                self._add(held)
            self._finish(complete=False)
        elif self._state == self._text:
            self._say(self._space + held, last=True)
        return self._taken()

    def _taken(self) -> list[CallEvent]:
        taken, self._events = self._events, []
        return taken

    def _text(self) -> bool:
        """Take text up to a marker, and return whether a marker was found."""
        before, marker, after = self._held.partition(self._marker) if self._marker else (self._held, "", "")
        if not marker:
            most = min(len(self._marker) - 1, len(before))
            partial = max((n for n in range(most + 1) if before.endswith(self._marker[:n])), default=0)
            before, after = before[: len(before) - partial], before[len(before) - partial :]
        self._held = after
        self._say(self._space + before)
        if marker:
            self._opened, self._listed, self._state = marker, False, self._head
        return bool(marker)

    def _say(self, text: str, *, last: bool = False) -> None:
        """Add text. White space at its end is held back, because a call may follow."""
        if self._after_call:
            text = text.lstrip(SPACE)
        self._after_call = self._after_call and not text
        shown = text if last or self._family is None else text.rstrip(SPACE)
        self._space = text[len(shown) :]
        if shown:
            self._events.append(TextDelta(shown))

    def _head(self) -> bool:
        """Take the part of a call before its arguments."""
        reader = TextReader(self._held)
        try:
            name, arguments = self._read_head(reader)
        except IncompleteTextError:
            return len(self._held) > _LONGEST_HEAD and self._no_call()
        except UnexpectedTextError:
            return self._no_call()
        self._held = self._held[reader.place :]
        self._space = self._opened = ""
        self._call = self._new_id(self._count), name
        self._events.append(CallStarted(self._count, *self._call))
        self._end = ObjectEnd()
        if self._family == "functiongemma":
            self._state = self._body
        elif arguments is None:
            self._state = self._object
        else:
            self._add(arguments)
            self._finish(complete=True)
        return True

    def _no_call(self) -> bool:
        """Turn the beginning of a possible call into text."""
        self._say(self._space + self._opened)
        self._opened = ""
        self._state = self._text
        return True

    def _read_head(self, reader: TextReader) -> tuple[str, str | None]:
        """Return the name of a call, and its arguments; None if the arguments follow."""
        if self._family == "functiongemma":
            reader.need("call:")
            name = reader.word(_NAME)
            if reader.next != "{":
                raise UnexpectedTextError
            return name, None
        if self._family == "llama3":
            reader.take("<|python_tag|>")
        elif self._family in ("mistral", "mistral_args") and not self._listed:
            if not reader.take("["):
                return self._bare_head(reader), None
            self._listed = True
            reader.place = 0  # it is read again with the rest
        if self._listed and self._opened == self._marker:
            reader.need("[")
        return self._json_head(reader)

    def _bare_head(self, reader: TextReader) -> str:
        """Return the name in Mistral's newer format."""
        name = reader.word(_NAME)
        if reader.take("[CALL_ID]"):
            reader.word(_WORD)
        reader.take("[ARGS]")
        if reader.next != "{":
            raise UnexpectedTextError
        return name

    def _json_head(self, reader: TextReader) -> tuple[str, str | None]:
        reader.need("{")
        if self._family == "llama3":
            if reader.take('"type"'):
                for part in (":", '"function"', ","):
                    reader.need(part)
        else:
            while reader.take('"type"') or reader.take('"id"'):
                reader.need(":")
                reader.string()
                reader.need(",")
            if self._takes_arguments(reader):  # the order of Hermes 2 Pro
                arguments = reader.object()
                reader.need(",")
                return self._named(reader), arguments
        name = self._named(reader)
        if reader.next == "}":
            return name, "{}"
        reader.need(",")
        if not self._takes_arguments(reader) or reader.next != "{":
            raise UnexpectedTextError
        return name, None

    def _named(self, reader: TextReader) -> str:
        reader.need('"name"')
        reader.need(":")
        name = reader.string()
        if not name or (self._family == "llama3" and self._names is not None and name not in self._names):
            raise UnexpectedTextError
        return name

    def _takes_arguments(self, reader: TextReader) -> bool:
        if not (reader.take('"arguments"') or reader.take('"parameters"')):
            return False
        reader.need(":")
        return True

    def _object(self) -> bool:
        """Take arguments."""
        end = self._end.find(self._held)
        piece, self._held = self._held[:end], "" if end is None else self._held[end:]
        if piece:
            self._add(piece)
        if end is not None:
            self._finish(complete=True)
        return end is not None

    def _body(self) -> bool:
        """Take the arguments of FunctionGemma, and convert them to JSON when they are complete."""
        body, end, after = self._held.partition("<end_function_call>")
        if not end:
            return False
        arguments = parse_arguments(body)
        self._held = after
        self._add(body if arguments is None else arguments)
        self._finish(complete=arguments is not None)
        return True

    def _add(self, piece: str) -> None:
        self._arguments.append(piece)
        self._events.append(ArgumentsDelta(self._count, piece))

    def _finish(self, *, complete: bool) -> None:
        arguments = "".join(self._arguments)
        self._arguments = []
        call = ToolCall(*self._call, arguments, complete and is_object(arguments))
        self._events.append(CallEnded(self._count, call))
        self._count += 1
        self._after_call = True
        self._state = self._tail

    def _tail(self) -> bool:
        """Take the texts after the arguments of a call."""
        reader = TextReader(self._held)
        try:
            more = self._read_tail(reader)
        except (IncompleteTextError, UnexpectedTextError) as error:
            if isinstance(error, IncompleteTextError) and len(self._held) <= _LONGEST_HEAD:
                return False
            self._state = self._text
            return True
        self._opened = self._held[: reader.place] if more else ""
        self._held = self._held[reader.place :]
        self._state = self._head if more else self._text
        return True

    def _read_tail(self, reader: TextReader) -> bool:
        """Read the texts after the arguments, and return whether another call follows without a marker."""
        if self._family == "hermes":
            reader.need("}")
            reader.need("</tool_call>")
        elif self._family == "llama3":
            reader.need("}")
            place = reader.place
            reader.take(";")
            if reader.next == "{":
                return True
            reader.place = place
        elif self._listed:
            if reader.take(","):
                reader.need('"id"')
                reader.need(":")
                reader.string()
            reader.need("}")
            if reader.take(","):
                return True
            reader.need("]")
        return False


def read_calls(
    text: str,
    call_format: CallFormat | None,
    *,
    names: Collection[str] | None = None,
    new_id: Callable[[int], str] | None = None,
) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the text of a whole answer without its calls, and the calls; see `ToolCallParser`."""
    parser = ToolCallParser(call_format, names=names, new_id=new_id)
    events = [*parser.push(text), *parser.flush()]
    content = "".join(event.text for event in events if isinstance(event, TextDelta))
    return content, tuple(event.call for event in events if isinstance(event, CallEnded))
