"""Conversations with tools, system messages and parts: what templates show of them, also against transformers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from template_samples import (
    ALTERNATING,
    ANSWER,
    CHATML_LIKE,
    DEEPSEEK_LIKE,
    DROPPING,
    HERMES_LIKE,
    ITEMS_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    PARTS_LIKE,
    QUESTION,
    RESULT,
    SYSTEM,
    TOOL,
    by_transformers,
    call,
    shown,
    template,
)

from hivellm_ort.errors import InferenceError
from hivellm_ort.text.template import ChatTemplate

WITH_TOOLS = {
    "hermes": HERMES_LIKE,
    "llama": LLAMA_LIKE,
    "mistral": MISTRAL_LIKE,
    "items": ITEMS_LIKE,
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [QUESTION],
    "system": [SYSTEM, QUESTION],
    "result": [QUESTION, call({"x": 4, "é": ["<", None]}), RESULT],
    "again": [SYSTEM, QUESTION, call({"x": 4}), RESULT, ANSWER, {"role": "user", "content": " And of 9? "}],
}
LATE = {"role": "system", "content": "Now in Latin."}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize(
    "tools", [None, [TOOL], [TOOL, {**TOOL, "function": {"name": "f", "parameters": {}}}]]
)
def test_what_a_template_shows_is_what_transformers_renders(name: str, conversation: str, tools: Any) -> None:
    """A conversation that the template shows whole has the text of apply_chat_template."""
    source, messages = WITH_TOOLS[name], CONVERSATIONS[conversation]

    assert by_transformers(source, copy.deepcopy(messages), tools) == shown(source, messages, tools)


@pytest.mark.parametrize("name", ["hermes", "llama", "items"])
def test_a_function_alone_is_a_tool(name: str) -> None:
    """Bare schemas are taken as transformers takes them, where the template shows them."""
    source, tools = WITH_TOOLS[name], [TOOL["function"]]

    assert by_transformers(source, [QUESTION], tools) == shown(source, [QUESTION], tools)


def test_a_function_alone_is_wrapped_where_the_template_needs_it() -> None:
    """A template that looks for `function` in each tool gets it."""
    assert shown(MISTRAL_LIKE, [QUESTION], [TOOL]) == shown(MISTRAL_LIKE, [QUESTION], [TOOL["function"]])


@pytest.mark.parametrize("name", ["llama", "mistral", "items"])
def test_arguments_in_a_text_become_an_object(name: str) -> None:
    """Where a text would be written as JSON once more, or cannot be walked through, its object is shown."""
    source = WITH_TOOLS[name]
    expected = shown(source, [QUESTION, call({"x": 4}), RESULT])

    assert expected == shown(source, [QUESTION, call('{"x":4}'), RESULT])


def test_arguments_in_a_text_stay_where_the_template_takes_them() -> None:
    """Qwen3's way: the model's own writing is kept, as transformers keeps it."""
    messages = [QUESTION, call('{"x":4}'), RESULT]

    assert by_transformers(HERMES_LIKE, messages) == shown(HERMES_LIKE, messages)
    assert '"arguments": {"x":4}}' in shown(HERMES_LIKE, messages)


def test_arguments_become_a_text_where_the_template_needs_one() -> None:
    """DeepSeek's way: a call has no content, and the text of its arguments."""
    expected = by_transformers(DEEPSEEK_LIKE, [QUESTION, call('{"x": 4}', content=None), RESULT])

    assert "<|call|>root" in expected
    assert expected == shown(DEEPSEEK_LIKE, [QUESTION, call('{"x": 4}', content=None), RESULT])
    assert expected == shown(DEEPSEEK_LIKE, [QUESTION, call({"x": 4}, content=None), RESULT])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"x": 4', "not JSON"),
        ("[4]", "a list"),
        ("null", "a NoneType"),
        ('{"x": NaN}', "NaN is not a JSON number"),
    ],
)
def test_arguments_that_are_no_object(text: str, expected: str) -> None:
    """They are refused by their place where an object is needed, and passed on where a text is."""
    with pytest.raises(
        ValueError, match=rf"^messages\[1\]\.tool_calls\[0\]: .* needs arguments as .*{expected}"
    ):
        shown(ITEMS_LIKE, [QUESTION, call(text), RESULT])

    assert text in shown(HERMES_LIKE, [QUESTION, call(text), RESULT])


@pytest.mark.parametrize("name", [*WITH_TOOLS, "deepseek"])
def test_no_content_beside_a_call(name: str) -> None:
    """It is empty: no template writes None, and no call is lost."""
    source = {**WITH_TOOLS, "deepseek": DEEPSEEK_LIKE}[name]
    text = shown(source, [QUESTION, call({"x": 4}, content=None), RESULT])

    assert "None" not in text
    assert "root" in text


def test_parts_are_joined() -> None:
    """A template for texts gets one text, the parts in lines of their own as in vLLM and llama.cpp."""
    parts = [{"type": "text", "text": "Root"}, {"type": "text", "text": "of 4?"}]
    expected = shown(CHATML_LIKE, [{"role": "user", "content": "Root\nof 4?"}])

    assert expected == shown(CHATML_LIKE, [{"role": "user", "content": parts}])


def test_parts_stay_where_the_template_takes_them() -> None:
    """A template that walks through parts gets them, as in transformers."""
    messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("Root", " of 4?")]}]

    assert by_transformers(PARTS_LIKE, messages) == shown(PARTS_LIKE, messages)
    assert "Root of 4?" in shown(PARTS_LIKE, messages)


def test_parts_that_only_some_templates_read_wholly() -> None:
    """A template that shows the first part only gets one text."""
    source = "{{ messages[0].content if messages[0].content is string else messages[0].content[0].text }}"
    parts = [{"type": "text", "text": text} for text in ("Root", "of 4?")]

    assert "Root\nof 4?" == shown(source, [{"role": "user", "content": parts}])


def test_a_list_is_never_printed() -> None:
    """A template that would write the list itself gets one text."""
    source = "{{ messages[0].content }}"

    assert "Hi" == shown(source, [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])


@pytest.mark.parametrize("source", [ALTERNATING, DROPPING])
def test_a_system_message_goes_before_the_question(source: str) -> None:
    """A template that refuses one, or drops it without a word, shows its text in the user's words."""
    moved = {"role": "user", "content": "Be brief.\n\nRoot of 4?"}
    late = {"role": "user", "content": "Now in Latin.\n\nRoot of 4?"}

    assert shown(source, [moved]) == shown(source, [SYSTEM, QUESTION])
    assert shown(source, [moved, ANSWER, late]) == shown(source, [SYSTEM, QUESTION, ANSWER, LATE, QUESTION])
    assert shown(source, [QUESTION]) == shown(source, [{"role": "system", "content": ""}, QUESTION])
    both = [{"role": "user", "content": "Be brief.\n\nNow in Latin.\n\nRoot\nof 4?"}]
    parts = [{"type": "text", "text": text} for text in ("Root", "of 4?")]
    assert shown(source, both) == shown(source, [SYSTEM, LATE, {"role": "user", "content": parts}])


def test_a_system_message_that_comes_late() -> None:
    """A template that takes one only at the beginning keeps it there and shows the later ones elsewhere."""
    messages = [SYSTEM, QUESTION, ANSWER, LATE, QUESTION]
    moved = [SYSTEM, QUESTION, ANSWER, {"role": "user", "content": "Now in Latin.\n\nRoot of 4?"}]
    only_first = LLAMA_LIKE.replace(
        "{%- if 'tool_calls'",
        "{%- if message.role == 'system' %}{%- continue %}{%- endif %}{%- if 'tool_calls'",
    )

    assert by_transformers(HERMES_LIKE, messages) == shown(HERMES_LIKE, messages)
    assert by_transformers(only_first, moved) == shown(only_first, messages)


def test_a_system_message_is_not_lost_when_the_last_turn_is_a_tools() -> None:
    """Mistral's template shows it in the last turn alone, if that is the user's: else it goes where it is seen."""
    messages = [SYSTEM, QUESTION, call({"x": 4}), RESULT]

    assert "Be brief." not in by_transformers(MISTRAL_LIKE, messages)
    assert "[INST]Be brief.\n\nRoot of 4?[/INST]" in shown(MISTRAL_LIKE, messages)


@pytest.mark.parametrize("messages", [[SYSTEM], [QUESTION, ANSWER, SYSTEM]])
def test_a_system_message_with_no_question_after_it(messages: Any) -> None:
    """Where no question follows there is nowhere to put it: an error names it."""
    with pytest.raises(InferenceError, match=r"does not show messages\[\d\], of role 'system', to the model"):
        shown(DROPPING, messages)
    with pytest.raises(InferenceError, match="roles must alternate"):
        shown(ALTERNATING, messages)


def test_a_developer_is_a_system() -> None:
    """Templates that do not speak of developers show their words as a system message, those that do as theirs."""
    messages = [{"role": "developer", "content": "Be brief."}, QUESTION]
    knowing = CHATML_LIKE + "{# 'developer' is a role here #}"

    assert shown(CHATML_LIKE, [SYSTEM, QUESTION]) == shown(CHATML_LIKE, messages)
    assert by_transformers(knowing, messages) == shown(knowing, messages)
    assert shown(DROPPING, [SYSTEM, QUESTION]) == shown(DROPPING, messages)


@pytest.mark.parametrize("source", [CHATML_LIKE, DROPPING, ALTERNATING, DEEPSEEK_LIKE])
def test_tools_that_are_not_shown_are_refused(source: str) -> None:
    """A template that renders the same with and without tools is an error by name."""
    assert by_transformers(source, [QUESTION]) == by_transformers(source, [QUESTION], [TOOL])
    with pytest.raises(
        InferenceError, match=r"^the chat template does not show the tools .*: leave out tools"
    ):
        shown(source, [QUESTION], [TOOL])
    assert shown(source, [QUESTION]) == shown(source, [QUESTION], [])


def test_the_result_of_a_tool_that_is_not_shown_is_refused() -> None:
    """A template that drops it would have the model answer without it."""
    with pytest.raises(InferenceError, match=r"does not show messages\[1\], of role 'tool'"):
        shown(DROPPING, [QUESTION, RESULT])


def test_calls_that_are_not_shown_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """A template without calls shows the result: that it drops the call is a warning, once."""
    made = template(CHATML_LIKE)
    messages = [QUESTION, call({"x": 4}), RESULT]
    with caplog.at_level(logging.WARNING, logger="hivellm_ort"):
        for _ in range(3):
            made.fit(messages, None)

    expected = ["the chat template does not show messages[1].tool_calls to the model"]
    assert expected == [record.getMessage() for record in caplog.records]


def test_a_template_is_tried_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other texts of the same roles need no new look, and questions and answers alone need none."""
    made = template(ALTERNATING)
    calls = []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *a, **k: (calls.append(1), render(*a, **k))[1])

    made.fit([QUESTION, ANSWER, QUESTION], None)
    assert [] == calls
    made.fit([SYSTEM, QUESTION], None)
    first = len(calls)
    made.fit([{**SYSTEM, "content": "Other."}, {**QUESTION, "content": "words"}], None)
    assert first == len(calls) > 0


@pytest.mark.parametrize("source", [*WITH_TOOLS.values(), DEEPSEEK_LIKE, DROPPING])
def test_what_was_given_stays_as_it_was(source: str) -> None:
    """No form changes the caller's messages or tools."""
    messages = [SYSTEM, QUESTION, call('{"x": 4}', content=None), QUESTION]
    tools = None if source in (DEEPSEEK_LIKE, DROPPING) else [TOOL["function"]]
    before = copy.deepcopy((messages, tools))
    template(source).fit(messages, tools)

    assert before == (messages, tools)
