"""A grammar for answers with calls of tools: the name is one of the tools', and the arguments fit its schema."""

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
"""Stands in a `CallForm` for an id of nine letters and digits, which the model chooses."""

_ID = "[a-zA-Z0-9]{9}"


@dataclass(frozen=True)
class CallForm:
    """How calls are written in an answer. A marker that is a token of the model is written as that token.

    Attributes:
        marker: what every answer with calls has before its first one; empty where the answer begins with the call.
        trigger: where there is no marker, a regular expression: an answer that begins so is a call.
        optional: where there is no marker, a token that may stand before the call.
        begin: between the marker and the name of the first call.
        middle: between name and arguments.
        suffix: a regular expression of what may follow the arguments.
        end: after the arguments.
        again: between the end of a call and the next name; None where there can be one call only.
        close: after the last call.
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
        name: its name, of letters, digits, `_`, `-`, `.`, `:` and `/`.
        schema: the JSON text of its arguments' schema.
        strict: whether a schema that cannot be enforced is refused. Else as much of it is enforced as can be, with a
            warning.
        where: the place of the schema, for messages.
    """

    name: str
    schema: str
    strict: bool
    where: str


@dataclass(frozen=True)
class CallsGrammar:
    """Which calls an answer may have.

    Attributes:
        form: how calls are written.
        tools: those that may be called, at least one.
        free: whether the answer may be text instead, and begin with text. Without, it begins with a call.
        several: whether there may be more than one call, where the form has room for them.
        answer: what an answer without calls must look like; None for any text.
    """

    form: CallForm
    tools: tuple[ToolSchema, ...]
    free: bool
    several: bool
    answer: Grammar | None = None

    @property
    def source(self) -> str:
        """Where it is from, for messages."""
        return "tools"

    @property
    def kind(self) -> str:
        """The word for it in messages."""
        return "tools"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what two equal grammars have in common, in hex."""
        parts = asdict(replace(self, answer=None)) | {"answer": self.answer and self.answer.digest}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def definition(
        self, limits: GrammarLimits, vocabulary: Vocabulary, answer: Definition | None
    ) -> Definition:
        """Return the grammar in llguidance's own form.

        Args:
            limits: bounds on the schemas' text.
            vocabulary: the tokens of the model.
            answer: what `answer` is in that form.

        Raises:
            GrammarError: a strict schema cannot be enforced, or the schemas are too long.
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
            # llguidance writes Lark as it is, and anything else as JSON.
            inner = (
                json.loads(part.text)["grammars"][0]
                if part.text.startswith("{")
                else {"lark_grammar": part.text}
            )
            grammars.append({**inner, "name": name})
        warnings = [warning for part in parts.values() for warning in part.warnings]
        return Definition(json.dumps({"grammars": grammars}), tuple(warnings))

    def _lark(self, vocabulary: Vocabulary) -> str:
        """The grammar of the answer around the arguments."""
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
        """Any text up to the marker, as a token or in letters."""
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
        """Any text that does not begin as a call does, or one call."""
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
    """The grammar of a tool's arguments: an object of its schema."""
    # Slow to import, and most answers are under no grammar.
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
    """The schema of the objects among the values that a schema allows."""
    kinds = schema.get("type", "object") if isinstance(schema, Mapping) else None
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise GrammarError(f'{where}: arguments are an object, so the schema must have "type": "object"')
    return {**schema, "type": "object"}


def _literal(text: str, vocabulary: Vocabulary) -> str:
    """A text in Lark: letters, tokens of the model, ids."""
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
    """A text as a regular expression in Lark."""
    return re.escape(text).replace("/", "\\/")


def _tokens(ids: Collection[int]) -> str:
    """Any of some tokens in Lark; empty for none."""
    return f"<[{','.join(map(str, sorted(ids)))}]>" if ids else ""
