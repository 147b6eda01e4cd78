"""Answers held to tools: every format and choice, on random answers; what is refused; what is kept."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from call_samples import JSON_FORMATS, SCHEMAS, STOP, TOOLS, WEATHER, format_named, tokenizer, tool

from hivellm_ort.errors import GrammarError, OptionError, OptionTypeError
from hivellm_ort.grammar import calls as calls_module
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import GrammarLimits
from hivellm_ort.result import ToolCall
from hivellm_ort.tools.choice import ToolChoice, build_calls_grammar, parse_tool_choice
from hivellm_ort.tools.parser import read_calls

AUTO, REQUIRED = ToolChoice("auto"), ToolChoice("required")
STOPPING = ToolChoice("required", "stop")


@cache
def compiler(markers: bool) -> GrammarCompiler:
    """The compiler of one of the tokenizers."""
    made = tokenizer(markers=markers)
    return GrammarCompiler(made.to_str, made.get_vocab_size() + 8)


def constraint(
    name: str, choice: ToolChoice = REQUIRED, *, markers: bool = True, tools: Any = None, **options: Any
) -> Constraint:
    """The constraint of an answer in a format."""
    grammar = build_calls_grammar(format_named(name), tools or TOOLS, choice, **options)
    assert grammar is not None
    return compiler(markers).compile(grammar, end_token_ids=[end(markers)])


def end(markers: bool) -> int:
    """The token that ends an answer."""
    found: int = tokenizer(markers=markers).token_to_id("<|im_end|>")
    return found


def allowed(held: Constraint, markers: bool) -> list[int]:
    """The tokens that may come next."""
    logits = np.zeros(tokenizer(markers=markers).get_vocab_size() + 8, np.float32)
    found: list[int] = np.flatnonzero(held.apply(logits) == 0).tolist()
    return found


def text_of(ids: list[int], markers: bool) -> str:
    """The text of tokens, with markers."""
    text: str = tokenizer(markers=markers).decode(ids, skip_special_tokens=False)
    return text


def answer(held: Constraint, rng: random.Random, markers: bool, begin: str = "") -> str:
    """A random answer that begins so: it ends as soon as it may, once it is long."""
    ids = tokenizer(markers=markers).encode(begin, add_special_tokens=False).ids
    for one in ids:
        held.accept(one)
    closing = set('"}],: \n[>')
    while True:
        forced = held.forced_tokens()
        choices = allowed(held, markers)
        if forced:
            assert forced[0] in choices
        if end(markers) in choices and (held.finished or len(ids) > 60 or rng.random() < 0.1):
            return text_of(ids, markers)
        choices = [one for one in choices if one != end(markers)]
        if len(ids) > 60:
            choices = [one for one in choices if text_of([one], markers)[:1] in closing] or choices
        assert len(ids) < 3000, text_of(ids, markers)
        ids += forced[:1] or [rng.choice(choices)]
        held.accept(ids[-1])


def read(name: str, text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The calls of an answer, each known to be valid."""
    content, found = read_calls(text, format_named(name), names=[*SCHEMAS])
    for call in found:
        assert call.complete, text
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    return content, found


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("name", JSON_FORMATS)
def test_an_answer_with_calls(name: str, markers: bool) -> None:
    """A required answer is calls and nothing else, with arguments of their schemas; a named one is of that tool."""
    for seed in range(6):
        rng = random.Random(seed)
        content, found = read(name, answer(constraint(name, markers=markers), rng, markers))
        assert ("", True) == (content, len(found) >= 1)
        _, found = read(name, answer(constraint(name, STOPPING, markers=markers), rng, markers))
        assert ["stop"] == [call.name for call in found]
        _, found = read(name, answer(constraint(name, several=False, markers=markers), rng, markers))
        assert 1 == len(found)


@pytest.mark.parametrize("name", [name for name in JSON_FORMATS if name != "llama3"])
def test_several_calls(name: str) -> None:
    """An answer may have more than one call if the format allows it."""
    counts = {len(read(name, answer(constraint(name), random.Random(seed), True))[1]) for seed in range(12)}
    assert 1 < max(counts)


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("name", JSON_FORMATS)
def test_an_answer_that_may_be_text(name: str, markers: bool) -> None:
    """With `auto` any text is allowed. Every call has a tool's name, and arguments that match its schema."""
    begins = {
        "llama3": ['{"name": "', ' {"type":"function" , "name":"', "{"],
        "mistral": ["x [TOOL_CALLS]", "[TOOL_CALLS]"],
        "mistral_ids": ["x [TOOL_CALLS]", "[TOOL_CALLS]"],
        "mistral_args": ["x [TOOL_CALLS]", "[TOOL_CALLS]"],
    }.get(name, ["<tool_call>", "Hm.\n<tool_call>", "<think>a</think>\n<tool_call>", "é <tool_c"])
    for seed, begin in enumerate([*begins, "", "", "[", "<"]):
        held = constraint(name, AUTO, markers=markers)
        assert held.complete
        content, found = read(name, answer(held, random.Random(seed), markers, begin))
        if begin.endswith(("<tool_call>", "[TOOL_CALLS]", '"')):
            assert found
            assert content == begin.rpartition("\n")[0] or content in ("", "x")


@pytest.mark.parametrize("name", ["qwen", "mistral", "mistral_args"])
def test_a_marker_in_letters(name: str) -> None:
    """A marker that the model spells, although it has a token for it, begins a call as well."""
    marker = format_named(name).form.marker
    made = tokenizer(markers=True)
    held = constraint(name, AUTO)
    for piece in (marker[:1], marker[1:4], marker[4:]):
        for one in made.encode(piece, add_special_tokens=False).ids:
            held.accept(one)
    assert not held.complete
    rest = answer(held, random.Random(1), True)
    assert 1 <= len(read(name, marker + rest)[1])


def test_text_is_as_free_as_without_tools() -> None:
    """Before a call every token of text may come, tags such as `<think>` too, and the end."""
    made = tokenizer(markers=True)
    hidden = {made.token_to_id(one) for one in ("<|endoftext|>", "<|im_start|>", "[ARGS]")}
    free = set(allowed(constraint("qwen", AUTO), True))
    names = {
        made.token_to_id(one) for one in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")
    }
    assert names <= free
    assert not hidden & free
    # Halves of characters must come in their order.
    missing = set(range(made.get_vocab_size())) - free - hidden
    assert all(
        "\ufffd" in text_of([one], True) or made.id_to_token(one).startswith(("[", "<|")) for one in missing
    )


def test_what_is_forced() -> None:
    """The texts around a name take no forward passes."""
    held = constraint("qwen", STOPPING)
    assert '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'.startswith(
        text_of(held.forced_tokens(), True)
    )
    assert 20 < len(text_of(held.forced_tokens(), True))


def test_an_answer_of_a_grammar_or_a_call() -> None:
    """Beside a grammar `auto` allows answers of it, and calls; a required call has no text to hold."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for answers in (
        Grammar.json_schema(schema),
        Grammar.gbnf('root ::= "{\\"n\\": " [1-9] [0-9]* "}"'),
        Grammar.regex(r'\{"n": [1-9][0-9]*\}'),
    ):
        for markers in (True, False):
            kinds = set()
            for seed in range(12):
                held = constraint("qwen", AUTO, answer=answers, markers=markers)
                text, found = read("qwen", answer(held, random.Random(seed), markers))
                kinds.add(bool(found))
                if not found:
                    assert {"n"} == json.loads(text).keys()
            assert {True, False} == kinds
    assert build_calls_grammar(format_named("qwen"), TOOLS, REQUIRED) == build_calls_grammar(
        format_named("qwen"), TOOLS, REQUIRED, answer=Grammar.regex("a")
    )
    with pytest.raises(GrammarError, match="have no marker, so they cannot be distinguished"):
        constraint("llama3", AUTO, answer=Grammar.regex("a"))


def test_compiling_again_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas of the same tools are read once; another choice is another grammar."""
    tools = [tool(f"tool_{number}", WEATHER["function"]["parameters"]) for number in range(20)]
    counted: list[str] = []
    reading = calls_module._arguments
    monkeypatch.setattr(calls_module, "_arguments", lambda one: counted.append(one.name) or reading(one))
    for _ in range(3):
        constraint("qwen", AUTO, tools=tools)
    assert 20 == len(counted)
    constraint("qwen", REQUIRED, tools=tools)
    assert 40 == len(counted)


UNBOUND = {"type": "object", "properties": {"a": {"type": "array", "contains": {"const": 1}}}}


def test_schemas_that_cannot_be_enforced() -> None:
    """A strict one is refused by its place; of another as much is enforced as can be, with a warning."""
    with pytest.raises(
        GrammarError, match=r"tools\[1\]\.parameters \(bad\), at /properties/a/contains"
    ) as caught:
        constraint("qwen", tools=[STOP, tool("bad", UNBOUND, strict=True)])
    assert "contains" in str(caught.value)
    grammar = build_calls_grammar(format_named("qwen"), [tool("bad", UNBOUND)], REQUIRED)
    assert grammar is not None
    (warning,) = compiler(True).warnings(grammar)
    assert warning.startswith("tools[0].parameters (bad), at /properties/a/contains: not enforced")
    for schema in ({"type": "array"}, {"enum": []}, 5, {"type": "object", "required": "a"}):
        grammar = build_calls_grammar(format_named("qwen"), [tool("bad", schema)], REQUIRED)
        assert grammar is not None
        (warning,) = compiler(True).warnings(grammar)
        assert "tools[0].parameters (bad)" in warning
        assert warning.endswith("its arguments are any JSON object")
        text = answer(compiler(True).compile(grammar, end_token_ids=[end(True)]), random.Random(1), True)
        assert all(call.complete for call in read_calls(text, format_named("qwen"))[1])
        with pytest.raises(GrammarError, match=r"tools\[0\]\.parameters \(bad\)"):
            constraint("qwen", tools=[tool("bad", schema, strict=True)])


def test_schemas_without_a_type_are_objects() -> None:
    """Arguments are always an object, even if the schema allows other values."""
    for schema in ({}, {"type": ["object", "null"]}, {"properties": {"a": {"const": 1}}, "required": ["a"]}):
        held = constraint("qwen", tools=[tool("any", schema, strict=True)])
        (call, *_) = read_calls(answer(held, random.Random(1), True), format_named("qwen"))[1]
        assert call.complete


def test_too_much_is_refused() -> None:
    """The limits of grammars hold for all schemas together."""
    grammar = build_calls_grammar(format_named("qwen"), TOOLS, AUTO)
    assert grammar is not None
    with pytest.raises(GrammarError, match=r"GrammarLimits\.max_bytes"):
        compiler(True).compile(grammar, end_token_ids=[], limits=GrammarLimits(max_bytes=100))


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ([tool('a"b')], r"tools\[0\]: the name is 'a\"b'"),
        ([tool("a b")], r"tools\[0\]: the name"),
        ([tool("a<b>")], r"tools\[0\]: the name"),
        ([STOP, tool("x" * 257)], r"tools\[1\]: the name"),
        ([STOP, STOP], r"tools\[1\]: there are two tools named 'stop'"),
    ],
)
def test_names_that_cannot_be_told(tools: Any, told: str) -> None:
    """A name that would not come back from an answer as it is, or is there twice, is refused."""
    with pytest.raises(OptionError, match=told):
        build_calls_grammar(format_named("qwen"), tools, AUTO)


def test_formats_that_cannot_be_enforced() -> None:
    """A required call and a strict tool are refused by name. Following the advice of the message gives no error."""
    for call_format, told in ((None, "in no known format"), (format_named("functiongemma"), "not JSON")):
        assert build_calls_grammar(call_format, TOOLS, AUTO) is None
        assert (
            build_calls_grammar(call_format, [tool("a", strict=True)], ToolChoice("auto", given=False))
            is None
        )
        with pytest.raises(
            GrammarError, match=f"tool_choice asks for a call, and .*{told}.*: use tool_choice 'auto'"
        ):
            build_calls_grammar(call_format, TOOLS, REQUIRED)
        with pytest.raises(
            GrammarError, match=f"the tool 'a' is strict, and .*{told}.*: leave out strict or tool_choice"
        ):
            build_calls_grammar(call_format, [tool("a", strict=True)], AUTO)


def test_choices() -> None:
    """The values of OpenAI's clients are accepted. By default the model chooses if there are tools."""
    assert ToolChoice("auto", given=False) == parse_tool_choice(None, TOOLS)
    assert "none" == parse_tool_choice(None, None).mode == parse_tool_choice("auto", None).mode
    assert AUTO == parse_tool_choice("auto", TOOLS)
    assert ToolChoice("none") == parse_tool_choice("none", TOOLS)
    assert REQUIRED == parse_tool_choice("required", TOOLS)
    for value in ({"type": "function", "function": {"name": "stop"}}, {"type": "function", "name": "stop"}):
        assert STOPPING == parse_tool_choice(value, TOOLS)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("any", "tool_choice is 'any': it must be"),
        ({"type": "allowed_tools"}, "tool_choice has the type 'allowed_tools': only 'function' is supported"),
        ({"type": "function"}, "tool_choice must be"),
        ({"type": "function", "function": 5}, "tool_choice must be"),
        ({"type": "function", "name": "go"}, "names 'go', which is none of the tools: get_weather, stop"),
    ],
)
def test_wrong_choices(value: Any, told: str) -> None:
    """A choice that is not understood is refused by name."""
    with pytest.raises(OptionError, match=told):
        parse_tool_choice(value, TOOLS)


def test_choices_need_tools() -> None:
    """Without tools a call cannot be required. A wrong type is a type error."""
    for value in ("required", {"type": "function", "name": "stop"}):
        with pytest.raises(OptionError, match="tool_choice asks for a call, and there are no tools"):
            parse_tool_choice(value, None)
    with pytest.raises(OptionTypeError, match="tool_choice is int"):
        parse_tool_choice(5, TOOLS)


def test_many_tools() -> None:
    """A hundred tools are held to as two are."""
    tools = [tool(f"tool_{number}", WEATHER["function"]["parameters"]) for number in range(100)]
    (call, *_) = read_calls(
        answer(constraint("qwen", tools=tools), random.Random(2), True), format_named("qwen")
    )[1]
    jsonschema.validate(json.loads(call.arguments), SCHEMAS["get_weather"])
