"""A grammar as it was given: its kind, its text and where it is from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NoReturn, get_args

from hivellm_ort.errors import GrammarError, OptionError, OptionTypeError

__all__ = ["Grammar", "Kind"]

Kind = Literal["gbnf", "json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True)
class Grammar:
    """What an answer may look like. Two are equal if kind and text are.

    Args:
        kind: `gbnf`, llama.cpp's grammars; `json_schema`; `regex`, in the syntax of Rust's regex crate, which the
            whole answer matches; `lark`, llguidance's dialect; `choice`, one of several texts.
        text: The grammar. For `json_schema` a JSON object; for `choice` a JSON list of strings.
        source: Where it is from, for messages.

    Raises:
        TypeError: If a value has the wrong type.
        GrammarError: If the text can be no grammar of its kind. Only what is cheap to see is checked here.
    """

    kind: Kind
    text: str
    source: str = field(default="grammar", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise OptionError(f"kind is {self.kind!r}: it must be one of {', '.join(get_args(Kind))}")
        for name in ("text", "source"):
            if not isinstance(getattr(self, name), str):
                raise OptionTypeError(
                    f"{name} of a grammar is {type(getattr(self, name)).__name__}: it must be str"
                )
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise GrammarError(f"{self.source}: the grammar holds a lone surrogate: remove it") from error
        if self.kind == "json_schema":
            object.__setattr__(self, "text", _schema_text(_parsed(self.text, self.source), self.source))
        if self.kind == "choice":
            object.__setattr__(self, "text", _choice_text(_parsed(self.text, self.source), self.source))

    @classmethod
    def gbnf(cls, text: str, *, source: str = "grammar") -> Grammar:
        """A grammar in llama.cpp's GBNF."""
        return cls("gbnf", text, source)

    @classmethod
    def lark(cls, text: str, *, source: str = "grammar") -> Grammar:
        """A grammar in llguidance's dialect of Lark."""
        return cls("lark", text, source)

    @classmethod
    def regex(cls, text: str, *, source: str = "regex") -> Grammar:
        """A regular expression that the whole answer matches."""
        return cls("regex", text, source)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | bool, *, source: str = "json_schema") -> Grammar:
        """A JSON schema, as an object or as JSON text; `True` and `{}` are any JSON value."""
        return cls("json_schema", schema if isinstance(schema, str) else _schema_text(schema, source), source)

    @classmethod
    def choice(cls, options: Sequence[str], *, source: str = "choice") -> Grammar:
        """One of several texts."""
        return cls("choice", _choice_text(options, source), source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind and text, in hex."""
        return hashlib.sha256(f"{self.kind}\0{self.text}".encode()).hexdigest()


def _schema_text(schema: Any, source: str) -> str:
    """The schema as JSON text, its keys in their order: it is the order of the answer's."""
    if schema is False:
        raise GrammarError(f"{source}: no value satisfies the schema false; give a schema that allows one")
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise GrammarError(
            f"{source}: the JSON schema is {type(schema).__name__}; it must be an object, true or JSON text"
        )
    try:
        text = json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"{source}: the schema is not JSON ({error}); correct it") from error
    return text


def _choice_text(options: Any, source: str) -> str:
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise OptionTypeError(f"{source} is {type(options).__name__}: it must be a sequence of strings")
    for index, option in enumerate(options):
        if not isinstance(option, str):
            raise OptionTypeError(f"{source}[{index}] is {type(option).__name__}: it must be str")
    if not options:
        raise GrammarError(f"{source} is empty: give at least one text")
    return json.dumps(list(dict.fromkeys(options)), ensure_ascii=False)


def _parsed(text: str, source: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise GrammarError(
            f"{source}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); correct it",
            line=error.lineno,
            column=error.colno,
        ) from error
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"{source}: not JSON ({error}); correct it") from error
