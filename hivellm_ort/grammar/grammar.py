"""Grammars as users give them: kind, text and source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from hivellm_ort.errors import GrammarError, OptionError, OptionTypeError
from hivellm_ort.jsonfiles.reading import parse_value

__all__ = ["Definition", "Grammar", "Kind"]

Kind = Literal["gbnf", "json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True)
class Grammar:
    """A grammar for answers. Two grammars are equal if kind and text are equal.

    Args:
        kind: `gbnf` (llama.cpp), `json_schema`, `regex` (syntax of Rust's regex crate; the whole answer must match),
            `lark` (llguidance's dialect) or `choice` (one of several texts).
        text: The grammar. For `json_schema` it is a JSON object, for `choice` a JSON list of strings.
        source: Name of its source, for messages.
        lenient: Whether to leave out parts of a JSON schema that cannot be enforced, with a warning. Else they are
            refused.

    Raises:
        OptionTypeError: A value has a wrong type.
        GrammarError: The text is not a grammar of its kind. Only cheap checks are done here.
    """

    kind: Kind
    text: str
    source: str = field(default="grammar", compare=False)
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise OptionError(f"kind is {self.kind!r}: it must be one of {', '.join(get_args(Kind))}")
        for name in ("text", "source"):
            if not isinstance(getattr(self, name), str):
                raise OptionTypeError(
                    f"{name} of a grammar is {type(getattr(self, name)).__name__}: it must be str"
                )
        # A byte order mark is not part of the text.
        object.__setattr__(self, "text", self.text.removeprefix("\ufeff"))
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
        """Make a grammar from llama.cpp's GBNF."""
        return cls("gbnf", text, source)

    @classmethod
    def lark(cls, text: str, *, source: str = "grammar") -> Grammar:
        """Make a grammar from llguidance's dialect of Lark."""
        return cls("lark", text, source)

    @classmethod
    def regex(cls, text: str, *, source: str = "regex") -> Grammar:
        """Make a grammar from a regular expression, which the whole answer must match."""
        return cls("regex", text, source)

    @classmethod
    def json_schema(cls, schema: Any, *, lenient: bool = False, source: str = "json_schema") -> Grammar:
        """Make a grammar from a JSON schema.

        Args:
            schema: A dict, a JSON text, a Pydantic class or a TypeAdapter. `True` and `{}` allow any JSON value.
                Wrappers of OpenAI's clients (`{"name", "strict", "schema"}`) are removed.
            lenient: Whether to leave out parts that cannot be enforced, with a warning. Else they are refused.
            source: Name of its source, for messages.
        """
        text = schema if isinstance(schema, str) else _schema_text(_plain_schema(schema, source), source)
        return cls("json_schema", text, source, lenient)

    @classmethod
    def choice(cls, options: Sequence[str], *, source: str = "choice") -> Grammar:
        """Make a grammar that allows one of several texts."""
        return cls("choice", _choice_text(options, source), source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind, text and `lenient`, in hex."""
        kind = f"{self.kind} lenient" if self.lenient else self.kind
        return hashlib.sha256(f"{kind}\0{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class Definition:
    """A grammar translated for llguidance.

    Attributes:
        text: The grammar.
        warnings: A sentence for each part that has no effect or is not enforced.
    """

    text: str
    warnings: tuple[str, ...] = ()


def _plain_schema(schema: Any, source: str) -> Any:
    """Return the schema as a mapping or a boolean. Pydantic classes (1 and 2) and TypeAdapters give their own."""
    if isinstance(schema, Mapping | bool):
        return schema
    give = getattr(schema, "model_json_schema" if isinstance(schema, type) else "json_schema", None)
    if give is None and isinstance(schema, type) and hasattr(schema, "__fields__"):
        give = getattr(schema, "schema", None)  # Pydantic 1
    if not callable(give) or isinstance(schema, Grammar):
        shown = schema.__name__ if isinstance(schema, type) else type(schema).__name__
        raise OptionTypeError(
            f"{source} is {shown}: it must be a dict, JSON text, True for any JSON, a Pydantic model class or a "
            "pydantic.TypeAdapter; for a dataclass or a list of models pass TypeAdapter(...)"
        )
    try:
        return give()
    except Exception as error:
        raise GrammarError(
            f"{source}: it gives no JSON schema ({error}); pass the schema as a dict"
        ) from error


def _schema_text(schema: Any, source: str) -> str:
    """Return the schema as JSON text. The order of keys is kept, because answers have the same order."""
    if schema is False:
        raise GrammarError(f"{source}: no value satisfies the schema false; give a schema that allows one")
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise GrammarError(
            f"{source}: the JSON schema is {type(schema).__name__}; it must be an object or true"
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
    try:
        return parse_value(text)
    except json.JSONDecodeError as error:
        raise GrammarError(
            f"{source}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); correct it",
            line=error.lineno,
            column=error.colno,
        ) from error
    except ValueError as error:
        raise GrammarError(f"{source}: not JSON ({error}); correct it") from error
