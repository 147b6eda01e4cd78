"""Which format a chat template speaks, and that its calls come back as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from call_samples import CODER, PLAIN, TEMPLATES, TOOLS, format_named

from hivellm_ort.result import ToolCall
from hivellm_ort.text.messages import checked_messages, checked_tools
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.tools.formats import find_format, format_of
from hivellm_ort.tools.parser import read_calls

CITY = '{"city": "Oslo", "days": 2}'
CALLS = (ToolCall("callnr000", "get_weather", CITY), ToolCall("callnr001", "stop", "{}"))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen", "hermes"),
        ("hermes", "hermes"),
        ("arguments_first", "hermes"),
        ("told", "hermes"),
        ("llama3", "llama3"),
        ("mistral", "mistral"),
        ("mistral_ids", "mistral_args"),
        ("mistral_args", "mistral_args"),
        ("functiongemma", "functiongemma"),
    ],
)
def test_the_family_of_a_template(name: str, family: str) -> None:
    """The format is found in a rendered call, or in the template's instructions to the model."""
    assert family == format_named(name).family


@pytest.mark.parametrize("source", [CODER, PLAIN, PLAIN + "{{- '' if false else '' }}<tool_call>"])
def test_an_unknown_format(source: str) -> None:
    """A template that writes calls in another way, or none, has no format."""
    assert find_format(ChatTemplate(source)) is None


def test_a_template_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format of a template is kept as long as the template."""
    template = ChatTemplate(TEMPLATES["qwen"])
    first = format_of(template)
    monkeypatch.setattr(template, "render", None)
    assert first is format_of(template)


def _assistant(template: ChatTemplate, calls: tuple[ToolCall, ...], content: str | None) -> str:
    """Return the template's text of an assistant's turn, without the marks of the turn."""
    message = {"role": "assistant", "content": content, "tool_calls": [call.to_message() for call in calls]}
    turns = checked_messages([{"role": "user", "content": "question"}, message])
    messages, tools = template.fit(turns, checked_tools(TOOLS))
    text = template.render(messages, tools=tools, add_generation_prompt=False)
    return text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


WRITING = [name for name in TEMPLATES if name != "told"]


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, None) for name in WRITING] + [(name, "Let me see.") for name in WRITING if name != "llama3"],
)
def test_calls_come_back_as_the_template_wrote_them(name: str, content: str | None) -> None:
    """What a template writes is read back as the calls that it was given, and written again as the same text.

    A call of Llama is the whole answer.
    """
    template = ChatTemplate(TEMPLATES[name])
    calls = CALLS[:1] if name == "llama3" else CALLS
    text = _assistant(template, calls, content)
    told, found = read_calls(text, format_named(name), new_id=lambda index: f"callnr00{index}")
    assert (content or "", calls) == (told, found)
    assert text == _assistant(template, found, told or None)


def test_white_space_is_the_templates() -> None:
    """The texts around a call, which are enforced, are those that the model has seen."""
    spaced, tight = format_named("qwen").form, format_named("hermes").form
    assert ('\n{"name": "', '", "arguments": ', "}\n</tool_call>") == (
        spaced.begin,
        spaced.middle,
        spaced.end,
    )
    assert ('{"name":"', '","arguments":', "}</tool_call>") == (tight.begin, tight.middle, tight.end)
    assert spaced.again == '\n<tool_call>\n{"name": "'
    assert format_named("llama3").form.again is None


def test_arguments_of_functiongemma_become_json() -> None:
    """Texts, numbers, words, lists and objects are converted. Other text stays unchanged, and is not complete."""
    body = "{city:<escape>New, {York<escape>,n:-3.5,ok:true,none:null,l:[1,<escape>a<escape>],o:{p:{}}}"
    wanted: Any = {"city": "New, {York", "n": -3.5, "ok": True, "none": None, "l": [1, "a"], "o": {"p": {}}}
    text = f"<start_function_call>call:f{body}<end_function_call>"
    _, (call,) = read_calls(text, format_named("functiongemma"))
    assert (wanted, True) == (json.loads(call.arguments), call.complete)
    broken = "<start_function_call>call:f{a:<escape>x}<end_function_call>"
    _, (call,) = read_calls(broken, format_named("functiongemma"))
    assert ("{a:<escape>x}", False) == (call.arguments, call.complete)
