"""Calls of tools from `generate` to `result.tool_calls`, by every way of asking."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.golden import golden
from support.running import PROMPT, Packages, engine_of, replace_files
from support.tool_base import TEMPLATE, scripted, write_tool_base

from hivellm_ort import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Expert,
    ExpertManager,
    GrammarError,
    InferenceError,
    OptionError,
    TextDelta,
)

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "root", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop"}},
]
NAMED = {"type": "function", "function": {"name": "root"}}
CALL = '<tool_call>\n{"name": "root", "arguments": {"x": 4}}\n</tool_call>'


@pytest.fixture(scope="module")
def bundle(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the packages with such a template, and the tags as tokens."""
    with packages.load("lora") as expert:
        return write_tool_base(tmp_path_factory.mktemp("base") / "bundle", engine_of(expert).folder)


@pytest.fixture
def caller(packages: Packages, bundle: Path) -> Iterator[Expert]:
    """The LoRA expert on it."""
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        yield expert


def saying(expert: Expert, text: str, **options: Any) -> dict[str, Any]:
    """Return options with which the model writes a text and ends."""
    asked = expert.builder.build(PROMPT, options)  # type: ignore[arg-type]
    asked.end_before_start()
    script = [*expert.tokenizer.encode(text), 2]
    return {**options, "processors": [scripted(script, len(asked.request.prompt_ids))]}


def test_a_required_call_by_every_way_of_asking(caller: Expert, packages: Packages, bundle: Path) -> None:
    """The answer is the same alone, streamed, in a batch, asynchronously, and by a manager; its call is valid."""
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 100}
    expected = caller.generate(PROMPT, **options)
    (call,) = expected.tool_calls
    assert ("root", True, "", "grammar", True) == (
        call.name,
        call.complete,
        expected.content,
        expected.finish_reason,
        expected.grammar_complete,
    )
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert expected.forced_tokens > 20
    stream = caller.generate_stream(PROMPT, **options)
    assert expected.text == "".join(stream)
    listed = {**options, "tools": [TOOLS, None], "tool_choice": [NAMED, None]}
    results = [
        stream.result,
        *caller.generate_batch([PROMPT, PROMPT], **options),
        asyncio.run(caller.agenerate(PROMPT, **options)),
        caller.generate_batch([PROMPT, PROMPT], **listed)[0],
    ]
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        manager.load_expert("one", packages.lora, base=bundle)
        results += [manager.generate("one", PROMPT, **options)]
    assert [expected.tokens] * 6 == [one.tokens for one in results]
    assert [call.arguments] * 6 == [one.tool_calls[0].arguments for one in results]
    assert 6 == len({one.tool_calls[0].id for one in results})
    assert () == caller.generate_batch([PROMPT, PROMPT], **listed)[1].tool_calls


def test_a_stream_of_events(caller: Expert) -> None:
    """A parser of the stream tells calls from text as they come; the ids are those of the result."""
    options = saying(caller, f"Well.\n{CALL}", tools=TOOLS)
    with caller.generate_stream(PROMPT, **options) as stream:
        parser = stream.call_parser()
        events = [*(event for piece in stream for event in parser.push(piece)), *parser.flush()]
        result = stream.result
    (call,) = result.tool_calls
    assert f"Well.\n{CALL}" == result.text
    assert "Well." == result.content == "".join(one.text for one in events if isinstance(one, TextDelta))
    arguments = "".join(one.text for one in events if isinstance(one, ArgumentsDelta))
    assert [CallStarted(0, call.id, "root"), CallEnded(0, call)] == [
        one for one in events if isinstance(one, CallStarted | CallEnded)
    ]
    assert '{"x": 4}' == call.arguments == arguments

    async def read() -> list[Any]:
        pieces = caller.agenerate_stream(PROMPT, **options)
        with pytest.raises(InferenceError, match="has not begun"):
            pieces.call_parser()
        found, parser = [], None
        async for piece in pieces:
            parser = parser or pieces.call_parser()
            found += parser.push(piece)
        assert parser is not None
        return [*found, *parser.flush()]

    assert [CallStarted, CallEnded] == [
        type(one) for one in asyncio.run(read()) if isinstance(one, CallStarted | CallEnded)
    ]


def test_the_model_chooses(caller: Expert) -> None:
    """By default it may answer with text, and what begins as a call is held to the tools."""
    text = caller.generate(PROMPT, **saying(caller, "Hello; 4.", tools=TOOLS))
    assert ("Hello; 4.", "Hello; 4.", (), "eos") == (
        text.text,
        text.content,
        text.tool_calls,
        text.finish_reason,
    )
    assert {"role": "assistant", "content": "Hello; 4."} == text.message
    # It wants a tool that there is not, and a number that is too large.
    wrong = CALL.replace("root", "rout").replace("4", "12")
    (call,) = caller.generate(PROMPT, **saying(caller, wrong, tools=TOOLS), max_tokens=100).tool_calls
    assert call.complete
    jsonschema.validate(json.loads(call.arguments), SCHEMA if call.name == "root" else {"maxProperties": 0})


def test_text_is_the_same_with_and_without_the_choice(caller: Expert) -> None:
    """An answer without a call is the one that the model gives when calls are not held to anything.

    This model of random numbers would write halves of characters, which no text has.
    """
    size = caller.tokenizer.vocab_size
    halves = [one for one in range(size) if "\N{REPLACEMENT CHARACTER}" in caller.tokenizer.decode([one])]
    bias = dict.fromkeys(halves, float("-inf"))
    options: dict[str, Any] = {"tools": TOOLS, "max_tokens": 24, "logit_bias": bias}
    free = caller.generate(PROMPT, tool_choice="none", **options)
    held = caller.generate(PROMPT, **options)
    assert (free.tokens, free.text) == (held.tokens, held.text)
    assert (None, ()) == (free.grammar_complete, free.tool_calls)


def test_no_calls(caller: Expert) -> None:
    """With `none` nothing is held to the tools, and nothing is read as a call."""
    result = caller.generate(PROMPT, **saying(caller, CALL, tools=TOOLS, tool_choice="none"))
    assert (CALL, CALL, ()) == (result.text, result.content, result.tool_calls)


def test_several_calls_or_one(caller: Expert) -> None:
    """`parallel_tool_calls` says whether there may be more than one."""
    two = f"{CALL}\n{CALL.replace('4', '5')}"
    several = caller.generate(PROMPT, **saying(caller, two, tools=TOOLS), max_tokens=120)
    assert ['{"x": 4}', '{"x": 5}'] == [call.arguments for call in several.tool_calls]
    options = saying(caller, two, tools=TOOLS, parallel_tool_calls=False)
    single = caller.generate(PROMPT, **options, max_tokens=120)
    assert (CALL, "grammar", 1) == (single.text, single.finish_reason, len(single.tool_calls))


def test_a_call_and_its_result_are_the_next_turns(caller: Expert) -> None:
    """The answer as a message, and the result of the call, render as the model wrote them."""
    answer = caller.generate(PROMPT, **saying(caller, f"Well.\n{CALL}", tools=TOOLS))
    (call,) = answer.tool_calls
    turns = [
        {"role": "user", "content": PROMPT},
        answer.message,
        {"role": "tool", "tool_call_id": call.id, "content": "2"},
    ]
    asked = caller.builder.build(None, {"messages": turns, "tools": TOOLS})
    asked.end_before_start()
    prompt = caller.tokenizer.decode(asked.request.prompt_ids, skip_special_tokens=False)
    assert f"<|im_start|>assistant\n{answer.text}<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n" in prompt


def test_a_call_that_is_cut_off(caller: Expert) -> None:
    """`max_tokens` inside a call leaves what came, and says that it is not whole; a stop string does so too."""
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": NAMED}
    whole = caller.generate(PROMPT, **options, max_tokens=100)
    length = len(whole.tokens) - len(caller.tokenizer.encode("}\n</tool_call>")) - 1
    cut = caller.generate(PROMPT, **options, max_tokens=length)
    assert ("length", False, [False]) == (
        cut.finish_reason,
        cut.grammar_complete,
        [call.complete for call in cut.tool_calls],
    )
    early = caller.generate(PROMPT, **options, max_tokens=3)
    assert (early.text, ()) == (early.content, early.tool_calls)
    stopped = caller.generate(PROMPT, **options, stop='"x": ')
    assert ("stop", ["{"], [False]) == (
        stopped.finish_reason,
        [call.arguments for call in stopped.tool_calls],
        [call.complete for call in stopped.tool_calls],
    )


def test_a_call_after_thinking(caller: Expert) -> None:
    """A model that thinks first thinks freely, of calls too; then comes the call."""
    thought = f"I might write {CALL}."
    options = saying(
        caller,
        f"<think>\n{thought}\n</think>\n\n{CALL}",
        tools=TOOLS,
        tool_choice="required",
        enable_thinking=True,
    )
    result = caller.generate(PROMPT, **options, max_tokens=200)
    assert (thought, CALL, 1) == (result.reasoning, result.text, len(result.tool_calls))


def test_tools_beside_a_grammar(caller: Expert) -> None:
    """A grammar holds as before; with `auto` the answer is one of it, or a call."""
    options: dict[str, Any] = {"tools": TOOLS, "regex": "[0-9]{3}"}
    only = caller.generate(PROMPT, **saying(caller, CALL, **options))
    assert (True, ()) == (only.text.isdigit(), only.tool_calls)
    either = {**options, "tool_choice": "auto"}
    assert "123" == caller.generate(PROMPT, **saying(caller, "123", **either)).text
    assert CALL == caller.generate(PROMPT, **saying(caller, CALL, **either), max_tokens=100).text
    required = {**options, "tool_choice": "required"}
    assert caller.generate(PROMPT, **saying(caller, "123", **required), max_tokens=100).tool_calls


def test_what_is_not_enforced_is_said(caller: Expert) -> None:
    """A schema that cannot be enforced is a warning in the result, or an error for a strict tool."""
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    tool: dict[str, Any] = {"name": "root", "parameters": schema}
    (warning,) = caller.generate(PROMPT, tools=[tool], max_tokens=2).warnings
    assert "tools[0].parameters (root), at /properties/x/uniqueItems: not enforced" in warning
    with pytest.raises(GrammarError, match=r"tools\[0\]\.parameters \(root\), at /properties/x/uniqueItems"):
        caller.generate(PROMPT, tools=[{**tool, "strict": True}], max_tokens=2)


def test_bad_choices_change_nothing(caller: Expert, packages: Packages) -> None:
    """A choice that cannot be kept is refused before anything is generated."""
    with pytest.raises(OptionError, match="names 'go', which is none of the tools"):
        caller.generate(PROMPT, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "go"}})
    with pytest.raises(OptionError, match="tool_choice asks for a call, and there are no tools"):
        caller.generate(PROMPT, tool_choice="required")


def test_a_template_with_calls_of_its_own(packages: Packages, tmp_path: Path) -> None:
    """Where the format is not known the answer is text as before, and a required call is refused."""
    with packages.load("lora") as expert:
        copy = Path(shutil.copytree(engine_of(expert).folder, tmp_path / "bundle"))
    replace_files(copy, {"chat_template.jinja": TEMPLATE.replace("tool_call>", "call>")})
    with Expert.load(packages.lora, base=copy, cache_dir=packages.cache, threads=1, trust="off") as expert:
        result = expert.generate(PROMPT, tools=TOOLS, max_tokens=8)
        assert (result.text, (), None) == (result.content, result.tool_calls, result.grammar_complete)
        with pytest.raises(GrammarError, match="writes calls in no known format"):
            expert.generate(PROMPT, tools=TOOLS, tool_choice="required")


def test_the_grammar_of_a_package_stays(bundle: Path, packages: Packages) -> None:
    """A package that wants its grammar enforced answers by it, with tools too, unless a choice says more."""
    with Expert.load(
        golden("grammar"), base=bundle, cache_dir=packages.cache, threads=1, trust="off"
    ) as expert:
        without = expert.generate(PROMPT, max_tokens=24)
        with_tools = expert.generate(PROMPT, tools=TOOLS, max_tokens=24)
        assert without.grammar_complete is not None
        assert () == with_tools.tool_calls
        required = expert.generate(PROMPT, tools=TOOLS, tool_choice=NAMED, max_tokens=100)
        assert ["root"] == [call.name for call in required.tool_calls]
