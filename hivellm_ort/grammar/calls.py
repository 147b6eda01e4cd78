"""Makes grammars for answers with tool calls: each call has a tool's name, and arguments that match its schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Definition, Grammar
from hivellm_ort.grammar.limits import GrammarLimits
from hivellm_ort.grammar.vocabulary import Vocabulary

__all__ = ["ID", "CallForm", "CallsGrammar", "ToolSchema"]

ID = "\0"
"""The placeholder in a `CallForm` for an id of nine letters and digits, which the model chooses."""

_ID = "[a-zA-Z0-9]{9}"


@dataclass(frozen=True)
class CallForm:
    """The texts around the names and arguments of calls. A text that is a token is written as that token.

    Attributes:
        marker: The text before the first call; empty if an answer with a call begins with the call.
        trigger: A regular expression. Without a marker, an answer whose beginning matches is a call.
        optional: A token that may come before the call, without a marker.
        begin: The text between the marker and the name of the first call.
        middle: The text between name and arguments.
        suffix: A regular expression of text that may follow the arguments.
        end: The text after the arguments.
        again: The text between the end of a call and the next name; None if an answer has at most one call.
        close: The text after the last call.
    """

    marker: str
    begin: str
    middle: str
    end: str
    again: str | None
    close: str = ""
    suffix: str = ""
    trigger: str = ""
    optional: str = ""


@dataclass(frozen=True)
class ToolSchema:
    """A tool that may be called.

    Attributes:
        name: Its name, of letters, digits, `_`, `-`, `.`, `:` and `/`.
        schema: The JSON text of its arguments' schema.
        strict: Whether a schema that cannot be enforced completely is refused. Otherwise it is enforced partly, with
            a warning.
        where: The place of the schema, for messages.
    """

    name: str
    schema: str
    strict: bool
    where: str


@dataclass(frozen=True)
class CallsGrammar:
    """The calls that an answer may have.

    Attributes:
        form: The texts around calls.
        tools: The tools that may be called, at least one.
        free: Whether the answer may be text, or begin with text. Otherwise it begins with a call.
        several: Whether the answer may have more than one call, if the form allows it.
        answer: The grammar of an answer without calls; None for any text.
    """

    form: CallForm
    tools: tuple[ToolSchema, ...]
    free: bool
    several: bool
    answer: Grammar | None = None

    @property
    def source(self) -> str:
        """Its source, for messages."""
        return "tools"

    @property
    def kind(self) -> str:
        """Its kind, for messages."""
        return "tools"

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex. Equal grammars have the same digest."""
        parts = asdict(replace(self, answer=None)) | {"answer": self.answer and self.answer.digest}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def definition(
        self, limits: GrammarLimits, vocabulary: Vocabulary, answer: Definition | None
    ) -> Definition:
        """Return the grammar in the format of llguidance.

        Args:
            limits: Limits on the text of the schemas.
            vocabulary: The tokens of the model.
            answer: The grammar `answer` in this format.

        Raises:
            GrammarError: A strict schema cannot be enforced, or the schemas are too long.
        """
        size = sum(len(tool.schema.encode()) for tool in self.tools)
        if size > limits.max_bytes:
            raise GrammarError(
                f"tools: their schemas have {size} bytes, more than GrammarLimits.max_bytes ({limits.max_bytes}); "
                "give fewer tools, or shorten their schemas"
            )
        arguments = [_arguments(tool) for tool in self.tools]
        parts = {f"tool{number}": one for number, one in enumerate(arguments)}
        if answer is not None:
            parts["answer"] = answer
        grammars: list[dict[str, Any]] = [{"lark_grammar": self._lark(vocabulary)}]
        for name, part in parts.items():
            # A definition is JSON, or plain Lark.
            inner = (
                json.loads(part.text)["grammars"][0]
                if part.text.startswith("{")
                else {"lark_grammar": part.text}
            )
            grammars.append({**inner, "name": name})
        warnings = [warning for part in parts.values() for warning in part.warnings]
        return Definition(json.dumps({"grammars": grammars}), tuple(warnings))

    def _lark(self, vocabulary: Vocabulary) -> str:
        """Return the Lark grammar of the answer. The arguments are grammars of their own."""
        form = self.form

        def written(text: str) -> str:
            return _literal(text, vocabulary)

        more = "" if form.again is None or not self.several else f"({written(form.again)} one)*"
        names = " | ".join(f"call{number}" for number in range(len(self.tools)))
        suffix = "SUFFIX?" if form.suffix else ""
        rules = {
            "calls": f"{written(form.begin)} one {more} {written(form.close)}",
            "one": f"({names}) {suffix} {written(form.end)}",
        }
        for number, tool in enumerate(self.tools):
            rules[f"call{number}"] = f"{written(tool.name + form.middle)} @tool{number}"
        if form.suffix:
            rules["SUFFIX"] = f"/{form.suffix}/"
        if not self.free:
            start = f"{written(form.marker)} calls"
        elif self.answer is not None:
            start = f"@answer | {written(form.marker)} calls"
        elif form.marker:
            start = "text | text marker calls"
            rules |= self._text_with_marker(vocabulary)
        else:
            start = '"" | text | triggered'
            rules |= self._text_or_call(vocabulary, written(form.close))
        return "".join(f"{name}: {body}\n" for name, body in {"start": start, **rules}.items())

    def _text_with_marker(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Return the rules for any text up to the marker, which is a token or letters."""
        escaped = _escaped(self.form.marker)
        token = vocabulary.special(self.form.marker)
        visible = _tokens(vocabulary.visible - {token})
        return {
            "text": f"(TEXT | {visible})*" if visible else "TEXT*",
            "marker": "spelled" if token is None else f"<[{token}]> | spelled",
            "spelled[lazy]": f"/(?s:.*){escaped}/",
            "TEXT": f"/(?s:.+)/ & ~/(?s:.*){escaped}(?s:.*)/",
        }

    def _text_or_call(self, vocabulary: Vocabulary, close: str) -> dict[str, str]:
        """Return the rules for one call, or any text that does not begin like a call."""
        form = self.form
        token = vocabulary.special(form.optional)
        visible = _tokens(vocabulary.visible - {token})
        return {
            "text": f"FREE ({visible} TEXT?)* | {visible} ({visible} | TEXT)*" if visible else "FREE",
            "triggered": ("" if token is None else f"<[{token}]>? ") + f"TRIGGER one {close}",
            "TRIGGER": f"/{form.trigger}/",
            "TEXT": "/(?s:.+)/",
            "FREE": f"/(?s:.+)/ & ~/(?:{form.trigger})(?s:.*)/",
        }


def _arguments(tool: ToolSchema) -> Definition:
    """Return the grammar of a tool's arguments: an object that matches its schema."""
    # Slow to import, and most requests have no grammar.
    from hivellm_ort.grammar.schema.compiled import compile_schema

    try:
        text = json.dumps(_of_object(json.loads(tool.schema), tool.where), ensure_ascii=False)
        return compile_schema(text, source=tool.where, lenient=not tool.strict)
    except ValueError as error:
        if tool.strict:
            if isinstance(error, GrammarError):
                raise
            raise GrammarError(f"{tool.where}: {error}; correct the schema") from error
        anything = compile_schema('{"type": "object"}', source=tool.where)
        return replace(anything, warnings=(f"{error}; its arguments are any JSON object",))


def _of_object(schema: Any, where: str) -> dict[str, Any]:
    """Return a schema that allows only the objects that the given schema allows."""
    kinds = schema.get("type", "object") if isinstance(schema, Mapping) else None
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise GrammarError(f'{where}: arguments are an object, so the schema must have "type": "object"')
    return {**schema, "type": "object"}


def _literal(text: str, vocabulary: Vocabulary) -> str:
    """Return a text in Lark, as letters, tokens of the model and patterns for ids."""
    written = []
    for part in vocabulary.parts(text):
        if isinstance(part, int):
            written.append(f"<[{part}]>")
            continue
        for index, letters in enumerate(part.split(ID)):
            written += [f"/{_ID}/"] if index else []
            written += [json.dumps(letters)] if letters else []
    return " ".join(written) or '""'


def _escaped(text: str) -> str:
    """Return a text as a regular expression in Lark."""
    return re.escape(text).replace("/", "\\/")


def _tokens(ids: Collection[int]) -> str:
    """Return the choice between tokens in Lark; empty for no tokens."""
    return f"<[{','.join(map(str, sorted(ids)))}]>" if ids else ""
