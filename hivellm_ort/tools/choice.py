"""Checks the options `tools`, `tool_choice` and `parallel_tool_calls`, and makes a grammar for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hivellm_ort.errors import GrammarError, OptionError, OptionTypeError, argument
from hivellm_ort.grammar.calls import CallsGrammar, ToolSchema
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.text.messages import function_of
from hivellm_ort.tools.formats import CallFormat

__all__ = ["ToolChoice", "build_calls_grammar", "parse_tool_choice"]

_NAME = re.compile(r"[\w.:/-]{1,256}")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolChoice:
    """The calls that an answer may have.

    Attributes:
        mode: `none`: no calls. `auto`: the model chooses between text and calls. `required`: the answer is a call.
        name: With `required`, the only tool that may be called; None for any tool.
        given: Whether the caller gave the option. Otherwise this is the default.
    """

    mode: Literal["none", "auto", "required"]
    name: str | None = None
    given: bool = True


def parse_tool_choice(value: Any, tools: Sequence[Mapping[str, Any]] | None) -> ToolChoice:
    """Parse the option `tool_choice`.

    Args:
        value: `none`, `auto`, `required`, or `{"type": "function", "function": {"name": …}}`. The name may also stand
            beside the type. None means `auto` if there are tools.
        tools: The request's tools, as `checked_tools` returns them.

    Raises:
        OptionTypeError: The option has a wrong type.
        OptionError: The option has another value, needs tools and there are none, or names an unknown tool.
    """
    where = argument("tool_choice")
    if value is None:
        return ToolChoice("auto" if tools else "none", given=False)
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise OptionError(
                f"{where} is {value!r}: it must be 'none', 'auto', 'required' or "
                '{"type": "function", "function": {"name": …}}'
            )
        choice = ToolChoice(value)  # type: ignore[arg-type]
    else:
        choice = ToolChoice("required", _named(value, where))
    if choice.mode == "required" and not tools:
        raise OptionError(f"{where} asks for a call, and there are no tools: give {argument('tools')}")
    names = [function_of(dict(tool))["name"] for tool in tools or ()]
    if choice.name is not None and choice.name not in names:
        raise OptionError(f"{where} names {choice.name!r}, which is none of the tools: {', '.join(names)}")
    return choice if tools else ToolChoice("none")


def _named(value: Any, where: str) -> str:
    if not isinstance(value, Mapping):
        raise OptionTypeError(f"{where} is {type(value).__name__}: pass a text or a dict")
    kind = value.get("type")
    if kind != "function":
        raise OptionError(f"{where} has the type {kind!r}: only 'function' is supported")
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise OptionError(f'{where} must be {{"type": "function", "function": {{"name": …}}}}')
    return name


def build_calls_grammar(
    call_format: CallFormat | None,
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    *,
    several: bool = True,
    answer: Grammar | None = None,
) -> CallsGrammar | None:
    """Build the grammar for answers with calls of the tools; None if the format cannot be enforced.

    Args:
        call_format: The model's format of calls; None if it is unknown.
        tools: The tools, as `checked_tools` returns them.
        choice: `auto` or `required`.
        several: Whether the answer may have more than one call. If the choice names a tool, there is only one.
        answer: The grammar of an answer without calls.

    Raises:
        OptionError: A tool has a forbidden name, or two tools have the same name.
        GrammarError: Calls are required, and cannot be enforced in this format.
    """
    functions = [function_of(dict(tool)) for tool in tools]
    strict = [function["name"] for function in functions if function.get("strict") is True]
    if call_format is None or not call_format.enforceable:
        _require_format(call_format, choice, strict)
        return None
    schemas: list[ToolSchema] = []
    for index, function in enumerate(functions):
        where = f"tools[{index}]"
        name = function["name"]
        if _NAME.fullmatch(name) is None:
            raise OptionError(
                f"{where}: the name is {name!r}; a name that is called has 1 to 256 letters, digits and _ - . : /"
            )
        if any(name == other.name for other in schemas):
            raise OptionError(f"{where}: there are two tools named {name!r}; give each a name of its own")
        parameters = function.get("parameters")
        schemas.append(
            ToolSchema(
                name,
                json.dumps(_NO_PARAMETERS if parameters is None else parameters, ensure_ascii=False),
                strict=function.get("strict") is True,
                where=f"{where}.parameters ({name})",
            )
        )
    if answer is not None and choice.mode == "auto" and not call_format.form.marker:
        raise GrammarError(
            f"{argument('tool_choice')} is 'auto' beside a grammar, and this model's calls have no marker, "
            "so they cannot be distinguished from other answers: leave out the grammar or the tools"
        )
    return CallsGrammar(
        call_format.form,
        tuple(schema for schema in schemas if choice.name in (None, schema.name)),
        free=choice.mode == "auto",
        several=several and choice.name is None,
        answer=answer if choice.mode == "auto" else None,
    )


def _require_format(call_format: CallFormat | None, choice: ToolChoice, strict: Sequence[str]) -> None:
    """Refuse options that need a format whose calls can be enforced."""
    if choice.mode == "required":
        asked = f"{argument('tool_choice')} asks for a call"
        instead = f"use {argument('tool_choice')} 'auto' and read the answer's text"
    elif strict and choice.given:
        asked = f"the tool {strict[0]!r} is strict"
        instead = f"leave out strict or {argument('tool_choice')} and read the answer's text"
    else:
        return
    if call_format is None:
        why = "the chat template writes calls in no known format (hermes, llama3, mistral)"
    else:
        why = f"calls in the format {call_format.family} have arguments that are not JSON, which cannot be enforced"
    raise GrammarError(f"{asked}, and {why}: {instead}")
