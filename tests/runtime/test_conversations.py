"""Conversations in OpenAI's form, tools, and the tokenizer, by every way of asking."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.running import PROMPT, Packages, engine_of, prompt_ids, replace_files
from tokenizers import Tokenizer, processors

from hivellm_ort import (
    Expert,
    ExpertManager,
    InferenceError,
    OptionError,
    OptionTypeError,
    UnknownExpertError,
)

# It shows tools first, then every turn with its calls.
TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function.name }}{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "root", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "root", "arguments": '{"x": 4}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Root"}, {"type": "text", "text": "of 4?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "call_1"},
]
TEXT = (
    '<tool>{"type": "function", "function": {"name": "root", "parameters": {"type": "object"}}}</tool>'
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRoot\nof 4?<|im_end|>\n"
    '<|im_start|>assistant\n<call>root{"x": 4}</call><|im_end|>\n<|im_start|>tool\n2<|im_end|>\n'
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def bundle(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the packages with such a template."""
    with packages.load("lora") as expert:
        copy = shutil.copytree(engine_of(expert).folder, tmp_path_factory.mktemp("base") / "bundle")
    replace_files(Path(copy), {"chat_template.jinja": TEMPLATE})
    return Path(copy)


@pytest.fixture
def caller(packages: Packages, bundle: Path) -> Iterator[Expert]:
    """The LoRA expert on it."""
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        yield expert


def test_every_way_of_asking_shows_tools_and_turns(caller: Expert, packages: Packages, bundle: Path) -> None:
    """Prompt and answer are the same alone, streamed, in a batch, asynchronously, and by a manager."""
    options: dict[str, Any] = {"messages": MESSAGES, "tools": [TOOL], "max_tokens": 8}
    asked = caller.builder.build(None, options)  # type: ignore[arg-type]
    asked.end_before_start()
    assert TEXT == caller.tokenizer.decode(asked.request.prompt_ids, skip_special_tokens=False)
    expected = caller.generate(**options)
    stream = caller.generate_stream(**options)
    assert expected.text == "".join(stream)
    listed = {**options, "messages": [MESSAGES, MESSAGES[:2]], "tools": [[TOOL], None]}
    alone = caller.generate(messages=MESSAGES[:2], max_tokens=8)
    results = [
        stream.result,
        *caller.generate_batch([None, None], **options),
        asyncio.run(caller.agenerate(**options)),
        caller.generate_batch([None, None], **listed)[0],
    ]
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        manager.load_expert("one", packages.lora, base=bundle)
        results += [
            manager.generate("one", **options),
            manager.generate_batch([("one", None)], **options)[0],
            asyncio.run(manager.agenerate("one", **options)),
        ]
    assert [expected.tokens] * 8 == [one.tokens for one in results]
    assert alone.tokens == caller.generate_batch([None, None], **listed)[1].tokens


def test_a_conversation_with_tools_begins_with_what_is_kept(caller: Expert) -> None:
    """The next turn takes over what was read of the turns before it."""
    first = caller.generate(messages=MESSAGES, tools=[TOOL], max_tokens=4)
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And of 9?"},
    ]
    second = caller.generate(messages=turns, tools=[TOOL], max_tokens=4)
    assert second.cached_tokens >= first.prompt_tokens - 2
    assert 0 == caller.generate(messages=turns[1:], max_tokens=4).cached_tokens


def test_a_template_without_tools(lora: Expert) -> None:
    """Tools that the model would not see are refused before any answer. An empty list means no tools."""
    with pytest.raises(InferenceError, match="does not show the tools to the model"):
        lora.generate(PROMPT, tools=[TOOL])
    with pytest.raises(InferenceError, match="does not show the tools to the model"):
        lora.generate_batch([PROMPT, PROMPT], tools=[None, [TOOL]])
    expected = lora.generate(PROMPT, max_tokens=4).tokens
    assert expected == lora.generate(PROMPT, tools=[], max_tokens=4).tokens
    assert [expected] * 2 == [one.tokens for one in lora.generate_batch([PROMPT] * 2, tools=[], max_tokens=4)]


def test_a_base_without_a_template(packages: Packages, tmp_path: Path) -> None:
    """Plain ChatML begins with what the tokenizer's post-processor puts before a text, and once."""
    with packages.load("lora") as expert:
        bundle = Path(shutil.copytree(engine_of(expert).folder, tmp_path / "bundle"))
        question = prompt_ids(expert, PROMPT)
    raw = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    start = ("<|endoftext|>", raw.token_to_id("<|endoftext|>"))
    raw.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[start])
    document = json.loads((bundle / "decoder.json").read_bytes())
    (bundle / "chat_template.jinja").unlink()
    del document["files"]["chat_template.jinja"]
    (bundle / "decoder.json").unlink()
    (bundle / "decoder.json").write_text(json.dumps(document))
    replace_files(bundle, {"tokenizer.json": raw.to_str(), "tokenizer_config.json": "{}"})
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        asked = expert.builder.build(PROMPT, {})
        asked.end_before_start()
    assert [start[1], *question] == asked.request.prompt_ids


@pytest.mark.parametrize("word", ["user", "\n", "e", "é"])
def test_no_answer_holds_a_bad_word(lora: Expert, word: str) -> None:
    """However hot the sampling, the text has no such word, and what the model wants most is left out."""
    whole = lora.generate(PROMPT, max_tokens=60).text
    likely = next(whole[i : i + 2] for i in range(len(whole)) if whole[i : i + 2].isascii())
    for bad in (word, likely, likely[0]):
        results = lora.generate_batch(
            [PROMPT] * 4, bad_words=[bad], max_tokens=60, temperature=3.0, seed=[1, 2, 3, 4]
        )
        assert [] == [one.text for one in results if bad in one.text]
        assert bad not in lora.generate(PROMPT, bad_words=[bad], max_tokens=60).text


@pytest.mark.parametrize(
    ("words", "expected"), [("ab", "bad_words is str 'ab'"), (["a", ""], r"bad_words\[1\] is ''")]
)
def test_words_that_are_none(lora: Expert, words: Any, expected: str) -> None:
    """A text in place of a list, and an empty word, are named."""
    with pytest.raises((OptionError, OptionTypeError), match=expected):
        lora.generate(PROMPT, bad_words=words)


def test_the_tokenizer_is_public(lora: Expert, packages: Packages) -> None:
    """It has what `logit_bias` needs, and a manager gives that of any of its experts."""
    tokenizer = lora.tokenizer
    answer = lora.generate(PROMPT, max_tokens=12)
    assert answer.text == tokenizer.decode(answer.tokens)
    token_id = tokenizer.token_to_id("<|im_end|>")
    assert 2 == token_id
    assert "<|im_end|>" == tokenizer.id_to_token(2)
    assert {0, 1, 2} == tokenizer.special_ids
    assert engine_of(lora).config.architecture.vocab_size >= tokenizer.vocab_size
    never = dict.fromkeys(tokenizer.encode(answer.text), float("-inf"))
    assert set() == never.keys() & {*lora.generate(PROMPT, max_tokens=12, logit_bias=never).tokens}
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        manager.load_expert("one", packages.lora)
        assert tokenizer.encode(PROMPT) == manager.tokenizer("one").encode(PROMPT)
        with pytest.raises(UnknownExpertError, match="two"):
            manager.tokenizer("two")
