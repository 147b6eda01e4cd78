"""Reading calls from an answer: text around them, cut-off and malformed ones, and any cut into pieces."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from call_samples import TEMPLATES, format_named, tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hivellm_ort.result import ToolCall
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.tokenizer import TextTokenizer
from hivellm_ort.tools.parser import (
    ArgumentsDelta,
    CallEnded,
    CallEvent,
    CallIds,
    CallStarted,
    TextDelta,
    ToolCallParser,
    read_calls,
)

NAMES = ("a", "b")


def events(name: str | None, pieces: list[str]) -> list[CallEvent]:
    """The events of an answer in pieces, with neighbouring deltas joined."""
    parser = ToolCallParser(name and format_named(name), names=NAMES, new_id=lambda index: f"id{index}")  # type: ignore[arg-type]
    joined: list[CallEvent] = []
    for event in [*(event for piece in pieces for event in parser.push(piece)), *parser.flush()]:
        last = joined[-1] if joined else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            joined[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            joined[-1] = ArgumentsDelta(event.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def call(index: int, name: str, arguments: str, *, complete: bool = True) -> list[CallEvent]:
    """The events of one call."""
    ended = CallEnded(index, ToolCall(f"id{index}", name, arguments, complete))
    return [
        CallStarted(index, f"id{index}", name),
        *([ArgumentsDelta(index, arguments)] if arguments else []),
        ended,
    ]


def hermes(name: str, arguments: str) -> str:
    """A call as Qwen3 writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


A, B = hermes("a", '{"x": "}\\"{"}'), hermes("b", "{}")
CALL_A, CALL_B = call(0, "a", '{"x": "}\\"{"}'), call(1, "b", "{}")
CASES: list[tuple[str, str, list[CallEvent]]] = [
    ("qwen", "", []),
    ("qwen", " \n", [TextDelta(" \n")]),
    ("qwen", "Hello.\n", [TextDelta("Hello.\n")]),
    ("qwen", "a <tool b", [TextDelta("a <tool b")]),
    ("qwen", "a <tool_cal", [TextDelta("a <tool_cal")]),
    ("qwen", A, CALL_A),
    ("qwen", f"{A}\n{B}\n", [*CALL_A, *CALL_B]),
    ("qwen", f"{A}{B}", [*CALL_A, *CALL_B]),
    ("qwen", f"So:\n\n{A}\n{B}", [TextDelta("So:"), *CALL_A, *CALL_B]),
    ("qwen", f"{A}\nand\n{B}\nDone. ", [*CALL_A, TextDelta("and"), *CALL_B, TextDelta("Done. ")]),
    # Other white space, other words for the arguments, none at all.
    ("qwen", '<tool_call>{ "name":"a" ,\n"parameters": {} }</tool_call>', call(0, "a", "{}")),
    ("qwen", '<tool_call>{"type": "function", "name": "a"}</tool_call>', call(0, "a", "{}")),
    ("qwen", hermes("other", "{}"), call(0, "other", "{}")),
    (
        "qwen",
        '<tool_call>{"id": "x", "arguments": {"y": {}}, "name": "a"}</tool_call>',
        call(0, "a", '{"y": {}}'),
    ),
    ("qwen", '<tool_call>{"arguments": {"y": {', [TextDelta('<tool_call>{"arguments": {"y": {')]),
    # Cut off before the name is known, in the arguments, after them.
    ("qwen", 'x <tool_call>\n{"name": "a"', [TextDelta('x <tool_call>\n{"name": "a"')]),
    ("qwen", A[: A.index('{"}')], call(0, "a", '{"x": "}\\"', complete=False)),
    ("qwen", '<tool_call>{"name": "a", "arguments": {', call(0, "a", "{", complete=False)),
    ("qwen", A[:-14], CALL_A),
    ("qwen", A[:-3], CALL_A),
    # No calls, though they begin so.
    ("qwen", f"<tool_call>no {A}", [TextDelta("<tool_call>no"), *CALL_A]),
    ("qwen", '<tool_call>{"name": 5}', [TextDelta('<tool_call>{"name": 5}')]),
    (
        "qwen",
        '<tool_call>{"name": "a", "arguments": "x"}',
        [TextDelta('<tool_call>{"name": "a", "arguments": "x"}')],
    ),
    ("qwen", '<tool_call>{"name": ""}', [TextDelta('<tool_call>{"name": ""}')]),
    ("qwen", '<tool_call>{"name": "\\x"}', [TextDelta('<tool_call>{"name": "\\x"}')]),
    # Brackets that fit, and no JSON.
    ("qwen", hermes("a", "{x: 1}"), call(0, "a", "{x: 1}", complete=False)),
    ("qwen", hermes("a", '{"x": NaN}'), call(0, "a", '{"x": NaN}', complete=False)),
    (
        "qwen",
        '<tool_call>{"name": "a", "arguments": {}} oh</tool_call>',
        [*call(0, "a", "{}"), TextDelta("} oh</tool_call>")],
    ),
    ("llama3", '{"name": "a", "parameters": {"x": 1}}', call(0, "a", '{"x": 1}')),
    ("llama3", ' <|python_tag|>{"name": "a", "parameters": {}}\n', call(0, "a", "{}")),
    ("llama3", '{"type": "function", "name": "a", "parameters": {}}', call(0, "a", "{}")),
    (
        "llama3",
        '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}',
        [*call(0, "a", "{}"), *call(1, "b", "{}")],
    ),
    (
        "llama3",
        '{"name": "a", "parameters": {}};\nDone',
        [*call(0, "a", "{}"), TextDelta(";\nDone")],
    ),
    ("llama3", '{"name": "Ada", "parameters": {}}', [TextDelta('{"name": "Ada", "parameters": {}}')]),
    ("llama3", ' {"n": 1}\n', [TextDelta(' {"n": 1}\n')]),
    (
        "llama3",
        'Use {"name": "a", "parameters": {}}',
        [TextDelta('Use {"name": "a", "parameters": {}}')],
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": "abcdefghi"}, {"name": "b", "arguments": {}}]',
        [*call(0, "a", "{}"), *call(1, "b", "{}")],
    ),
    (
        "mistral",
        'x\n[TOOL_CALLS][{"name": "a", "arguments": {}}, {"nope"]',
        [TextDelta("x"), *call(0, "a", "{}"), TextDelta('}, {"nope"]')],
    ),
    ("mistral", "[TOOL_CALLS] [1]", [TextDelta("[TOOL_CALLS] [1]")]),
    (
        "mistral_args",
        'x[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[CALL_ID]abcdefghi[ARGS]{}',
        [TextDelta("x"), *call(0, "a", '{"x": 1}'), *call(1, "b", "{}")],
    ),
    ("mistral_args", '[TOOL_CALLS]a{"x": 1}', call(0, "a", '{"x": 1}')),
    ("mistral_args", "[TOOL_CALLS]a[ARGS]x", [TextDelta("[TOOL_CALLS]a[ARGS]x")]),
    (
        "functiongemma",
        "<start_function_call>call:a{x:1}<end_function_call><start_function_call>call:b{}<end_function_call>",
        [*call(0, "a", '{"x": 1}'), *call(1, "b", "{}")],
    ),
    ("functiongemma", "<start_function_call>call:a{x:<esc", call(0, "a", "{x:<esc", complete=False)),
    ("functiongemma", "<start_function_call>a", [TextDelta("<start_function_call>a")]),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_calls_and_text(name: str, text: str, expected: list[CallEvent]) -> None:
    """The same events come of an answer as a whole, and character by character."""
    assert expected == events(name, [text])
    assert expected == events(name, list(text))


def test_the_name_comes_first_and_arguments_as_they_come() -> None:
    """Certain events are returned at once."""
    parser = ToolCallParser(format_named("qwen"), new_id=lambda index: f"id{index}")
    assert [TextDelta("Well.")] == parser.push("Well. \n<tool_")
    assert [] == parser.push('call>\n{"name": "a", "arguments"')
    assert [] == parser.push(": ")
    assert [CallStarted(0, "id0", "a"), ArgumentsDelta(0, "{")] == parser.push("{")
    assert [ArgumentsDelta(0, '"x": ')] == parser.push('"x": ')
    ended = CallEnded(0, ToolCall("id0", "a", '{"x": 1}'))
    assert [ArgumentsDelta(0, "1}"), ended] == parser.push("1}}\n</to")
    assert [] == parser.push("ol_call>\n") + parser.flush()


def test_without_a_format_everything_is_text() -> None:
    """An answer without tools is passed on as it is, at once."""
    parser = ToolCallParser(None)
    assert [TextDelta(" <tool_call>")] == parser.push(" <tool_call>")
    assert [TextDelta(" ")] == parser.push(" ")
    assert [] == parser.flush()
    assert (A, ()) == read_calls(A, None)


TEXTS = (
    "<tool_call> </tool_call> [TOOL_CALLS] [ARGS] [CALL_ID] <|python_tag|> <start_function_call>call:a{ x:<escape> "
    '<escape> <end_function_call> 1 } " \\ x a , ] ; { 🙂 [ : < true'
)
BEGINNINGS = (
    '\n{"name": "a", "arguments": ',
    '{"name": "a", "parameters": ',
    ' [{"name": "b", "arguments": ',
    '{"type": "function", ',
)
PARTS = st.sampled_from([*TEXTS.split(), *BEGINNINGS, '{"x": ', "}\n", " ", "\n", "é", ", ", A, B])


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    text=st.lists(PARTS, max_size=14).map("".join),
    cuts=st.sets(st.integers(0, 200), max_size=12),
)
@example(name="qwen", text=f"x {A}\n y {B}", cuts={1, 2, 3, 40})
def test_the_cut_into_pieces_does_not_matter(name: str, text: str, cuts: set[int]) -> None:
    """However an answer is cut, its events are the same, and nothing of it is lost; no text is an error."""
    places = sorted({0, *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in itertools.pairwise([*places, None])]
    whole = events(name, [text])
    assert whole == events(name, pieces) == events(name, list(text))
    calls = [event.call for event in whole if isinstance(event, CallEnded)]
    content = "".join(event.text for event in whole if isinstance(event, TextDelta))
    if not calls:
        assert text == content
    # What encloses calls never has this one.
    assert text.count("🙂") == sum(
        part.count("🙂") for part in (content, *(call.arguments for call in calls))
    )


@pytest.mark.parametrize("marker", ["[TOOL_CALLS]", "<tool_call>"])
def test_markers_that_are_special_tokens_are_text(marker: str) -> None:
    """A special token that calls are read by is part of the text; every other one is left out as before."""
    made = TextTokenizer(tokenizer(markers=True))
    token = made.token_to_id(marker)
    assert token is not None
    text = f"é 東<|im_start|>{marker} x[ARGS] 🙂<|im_end|>"
    detokenizer = IncrementalDetokenizer(made, kept=frozenset({token}))
    pieces = [detokenizer.push(one) for one in made.encode(text)]
    assert f"é 東{marker} x 🙂" == "".join(pieces) + detokenizer.flush()


def test_an_end_without_an_end_is_text() -> None:
    """What comes after arguments and encloses nothing is not held for ever."""
    parser = ToolCallParser(format_named("mistral"))
    begin = '[TOOL_CALLS] [{"name": "a", "arguments": {}'
    told = [event for piece in [begin, ', "id": "', *["x" * 1000] * 20] for event in parser.push(piece)]
    assert [CallStarted, ArgumentsDelta, CallEnded, TextDelta] == list(dict.fromkeys(map(type, told)))
    assert 16_000 < sum(len(event.text) for event in told if isinstance(event, TextDelta))


def test_a_head_without_an_end_is_text() -> None:
    """A text that begins like a call but has no name is not held back for ever."""
    parser = ToolCallParser(format_named("qwen"))
    begin = '<tool_call>{"name": "'
    shown = [event for piece in [begin, *["x" * 1000] * 20] for event in parser.push(piece)]
    assert all(isinstance(event, TextDelta) for event in shown)
    assert len(begin) + 16_000 <= sum(len(event.text) for event in shown if isinstance(event, TextDelta))


@pytest.mark.parametrize(
    ("family", "pattern"), [("hermes", r"call_[a-zA-Z0-9]{24}"), ("mistral", "[a-zA-Z0-9]{9}")]
)
def test_ids(family: str, pattern: str) -> None:
    """Each call has an id of its own, which stays; those of Mistral have the nine characters that it wants."""
    ids = CallIds(family)
    made = [ids(index) for index in range(5)]
    assert made == [ids(index) for index in range(5)]
    assert 5 == len({*made})
    assert all(re.fullmatch(pattern, one) for one in made)


def test_deep_arguments_end() -> None:
    """Arguments too deep for a JSON reader end, and are not complete."""
    deep: Any = '{"x":' * 3000 + "1" + "}" * 3000
    _, (found,) = read_calls(hermes("a", deep), format_named("qwen"))
    assert (deep, False) == (found.arguments, found.complete)
