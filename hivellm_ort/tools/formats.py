"""The formats of tool calls, and how the format of a chat template is detected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

from hivellm_ort.errors import ExpertError
from hivellm_ort.grammar.calls import ID, CallForm

__all__ = ["FORMATS", "CallFormat", "Family", "Template", "find_format", "format_of"]

Family = Literal["hermes", "llama3", "mistral", "mistral_args", "functiongemma"]


@dataclass(frozen=True)
class CallFormat:
    """The format in which a model writes calls.

    Attributes:
        family: `hermes` (Qwen2.5, Qwen3, Hermes), `llama3`, `mistral` (a JSON list), `mistral_args` (Mistral's newer
            format with plain names), `functiongemma`.
        form: The texts around names and arguments, with the white space of the template.
        markers: Texts of the format that are single tokens in some vocabularies. They stay in an answer's text, even
            if the tokenizer marks them as special.
    """

    family: Family
    form: CallForm
    markers: tuple[str, ...]

    @property
    def enforceable(self) -> bool:
        """Whether arguments are JSON, so that a schema can be enforced."""
        return self.family != "functiongemma"


class Template(Protocol):
    """The methods of a chat template that are used here; see `text.template.ChatTemplate`."""

    def render(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation."""

    def mentions(self, text: str) -> bool:
        """Return whether the source for conversations with tools has the text."""


_FOUND: WeakKeyDictionary[Template, CallFormat | None] = WeakKeyDictionary()
_NAME, _KEY, _VALUE = "markname0", "markkey00", "markvalue"
_CALL_ID = "markcall0"  # nine letters and digits, because Mistral's templates accept no others
_QUESTION = "markquestion"
_ARGUMENTS = rf'\{{"{_KEY}":\s*"{_VALUE}"\}}'

FORMATS: dict[Family, CallFormat] = {
    "hermes": CallFormat(
        "hermes",
        CallForm(
            marker="<tool_call>",
            begin='\n{"name": "',
            middle='", "arguments": ',
            end="}\n</tool_call>",
            again='\n<tool_call>\n{"name": "',
        ),
        ("<tool_call>", "</tool_call>"),
    ),
    "llama3": CallFormat(
        "llama3",
        CallForm(
            marker="",
            begin='{"name": "',
            middle='", "parameters": ',
            end="}",
            again=None,
            trigger=r'\s*\{\s*("type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"',
            optional="<|python_tag|>",
        ),
        ("<|python_tag|>",),
    ),
    "mistral": CallFormat(
        "mistral",
        CallForm(
            marker="[TOOL_CALLS]",
            begin=' [{"name": "',
            middle='", "arguments": ',
            suffix=', "id": "[a-zA-Z0-9]{9}"',
            end="}",
            again=', {"name": "',
            close="]",
        ),
        ("[TOOL_CALLS]",),
    ),
    "mistral_args": CallFormat(
        "mistral_args",
        CallForm(marker="[TOOL_CALLS]", begin="", middle="[ARGS]", end="", again="[TOOL_CALLS]"),
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ),
    "functiongemma": CallFormat(
        "functiongemma",
        CallForm(
            marker="<start_function_call>",
            begin="call:",
            middle="{",
            end="}<end_function_call>",
            again="<start_function_call>call:",
        ),
        ("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
}
"""The formats by family, with the white space that most templates have."""


def format_of(template: Template) -> CallFormat | None:
    """Return the format of a template. `find_format` is called once for each template."""
    if template not in _FOUND:
        _FOUND[template] = find_format(template)
    return _FOUND[template]


def find_format(template: Template) -> CallFormat | None:
    """Find the format in which a chat template writes calls; None if it writes no calls, or uses an unknown format.

    The template renders a conversation with one call, and the text is compared with the known formats. The format
    gets the white space of the template. If the template does not show calls, its source is searched: a template with
    `<tool_call>`, without `<function=` and without `<arg_key>`, is `hermes`.
    """
    shown = False
    for written in _written(template):
        for find in (_hermes, _mistral, _mistral_args, _functiongemma, _llama3):
            found = find(written)
            if found is not None:
                return found
        shown = shown or _NAME in written
    if shown:
        return None  # the format is unknown
    told = template.mentions("<tool_call>") and template.mentions("</tool_call>")
    if told and not template.mentions("<function=") and not template.mentions("<arg_key>"):
        return FORMATS["hermes"]
    return None


def _written(template: Template) -> Iterator[str]:
    """Yield renderings of a call, with arguments as an object and as a text. Refused conversations are skipped."""
    properties = {_KEY: {"type": "string", "description": "argument"}}
    parameters = {"type": "object", "properties": properties, "required": [_KEY]}
    tool = {
        "type": "function",
        "function": {"name": "tool", "description": "function", "parameters": parameters},
    }
    arguments = {_KEY: _VALUE}
    for content, given in product(("", None), (arguments, json.dumps(arguments))):
        call = {"id": _CALL_ID, "type": "function", "function": {"name": _NAME, "arguments": given}}
        messages = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": content, "tool_calls": [call]},
        ]
        with suppress(ExpertError):
            text = template.render(messages, tools=[tool], add_generation_prompt=False)
            yield text.rpartition(_QUESTION)[2]


def _hermes(text: str) -> CallFormat | None:
    known = FORMATS["hermes"]
    found = re.search(
        rf'<tool_call>(\s*)\{{"name":(\s*)"{_NAME}",(\s*)"arguments":(\s*){_ARGUMENTS}\}}(\s*)</tool_call>',
        text,
    )
    if found is None:
        # Hermes 2 Pro writes arguments first. The grammar uses the other order, because the name selects the schema.
        other = rf'<tool_call>\s*\{{\s*"arguments":\s*{_ARGUMENTS},\s*"name":\s*"{_NAME}"\}}\s*</tool_call>'
        return known if re.search(other, text) else None
    before, colon, comma, space, after = found.groups()
    begin = f'{before}{{"name":{colon}"'
    # Qwen writes each call on new lines.
    again = f"{chr(10) if before else ''}<tool_call>{begin}"
    middle, end = f'",{comma}"arguments":{space}', f"}}{after}</tool_call>"
    return replace(known, form=replace(known.form, begin=begin, middle=middle, end=end, again=again))


def _llama3(text: str) -> CallFormat | None:
    found = re.search(rf'\{{"name":(\s*)"{_NAME}",(\s*)"parameters":(\s*){_ARGUMENTS}\}}', text)
    if found is None:
        return None
    colon, comma, space = found.groups()
    known = FORMATS["llama3"]
    form = replace(known.form, begin=f'{{"name":{colon}"', middle=f'",{comma}"parameters":{space}')
    return replace(known, form=form)


def _mistral(text: str) -> CallFormat | None:
    found = re.search(
        rf'\[TOOL_CALLS\](\s*)\[\{{(?:"id":\s*"{_CALL_ID}",\s*)?"name":(\s*)"{_NAME}",(\s*)"arguments":(\s*)'
        rf'{_ARGUMENTS}(,\s*"id":\s*"{_CALL_ID}")?\}}\]',
        text,
    )
    if found is None:
        return None
    before, colon, comma, space, suffix = found.groups()
    known = FORMATS["mistral"]
    form = replace(
        known.form,
        begin=f'{before}[{{"name":{colon}"',
        middle=f'",{comma}"arguments":{space}',
        again=f', {{"name":{colon}"',
        suffix=known.form.suffix if suffix else "",
    )
    return replace(known, form=form)


def _mistral_args(text: str) -> CallFormat | None:
    found = re.search(rf"\[TOOL_CALLS\]{_NAME}(\[CALL_ID\]{_CALL_ID})?(\[ARGS\])?(\s*){_ARGUMENTS}", text)
    if found is None:
        return None
    call_id, mark, space = found.groups()
    middle = f"{f'[CALL_ID]{ID}' if call_id else ''}{mark or ''}{space}"
    known = FORMATS["mistral_args"]
    return replace(known, form=replace(known.form, middle=middle))


def _functiongemma(text: str) -> CallFormat | None:
    writes = f"<start_function_call>call:{_NAME}{{" in text and "<end_function_call>" in text
    return FORMATS["functiongemma"] if writes else None
