"""A base whose template knows `enable_thinking`, as Qwen3's does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.running import PROMPT, Packages, engine_of, replace_files
from tokenizers import AddedToken, Tokenizer

from hivellm_ort import Expert, GrammarError
from hivellm_ort.text.tokenizer import TextTokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture
def thinker(packages: Packages, tmp_path: Path) -> Iterator[Expert]:
    """The LoRA expert on a copy of its base with such a template."""
    with packages.load("lora") as expert:
        bundle = Path(shutil.copytree(engine_of(expert).folder, tmp_path / "bundle"))
    replace_files(bundle, {"chat_template.jinja": TEMPLATE})
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        yield expert


@pytest.fixture
def token_thinker(packages: Packages, tmp_path: Path) -> Iterator[Expert]:
    """The same, and its tokenizer has the tags as tokens, as Qwen3's has."""
    with packages.load("lora") as expert:
        bundle = Path(shutil.copytree(engine_of(expert).folder, tmp_path / "bundle"))
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    assert 2 == tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    replace_files(bundle, {"chat_template.jinja": TEMPLATE, "tokenizer.json": tokenizer.to_str()})
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        yield expert


def saying(text: str, tokenizer: TextTokenizer) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A processor that makes the model say a text and end."""
    script = iter([*tokenizer.encode(text), 2])

    def process(_: Any, logits: np.ndarray) -> np.ndarray:
        forced = np.full_like(logits, -np.inf)
        forced[next(script)] = 0
        return forced

    return process


def test_thinking_is_off_unless_asked_for(thinker: Expert) -> None:
    """By default an empty think block is in the prompt; with `enable_thinking` there is none."""
    tokenizer = thinker._base.tokenizer
    without, with_ = (
        tokenizer.decode(thinker.builder.build(PROMPT, {"enable_thinking": flag}).request.prompt_ids)
        for flag in (None, True)
    )
    assert with_ + EMPTY == without
    off = thinker.builder.build(PROMPT, {"enable_thinking": False}).request.prompt_ids
    assert thinker.builder.build(PROMPT, {}).request.prompt_ids == off


@pytest.mark.parametrize("lookup", [False, True])
def test_reasoning_is_apart_from_the_answer(lookup: bool, thinker: Expert) -> None:
    """The think block is `reasoning`; the stream and `text` have only the answer."""
    process = saying("<think>\nCount; them;\n</think>\n\nSELECT 1;", thinker._base.tokenizer)
    stream = thinker.generate_stream(
        PROMPT, enable_thinking=True, processors=[process], stop=";", prompt_lookup=lookup, max_tokens=100
    )
    pieces = list(stream)
    result = stream.result
    assert ("Count; them;", "SELECT 1", "stop") == (result.reasoning, result.text, result.finish_reason)
    assert "SELECT 1" == "".join(pieces)
    assert len(thinker.tokenizer.encode("<think>\nCount; them;\n</think>")) == result.reasoning_tokens


def test_thought_that_never_ends(thinker: Expert) -> None:
    """An answer that is cut off while thinking has no text."""
    process = saying("<think>\nand so on and so on", thinker._base.tokenizer)
    result = thinker.generate(PROMPT, enable_thinking=True, processors=[process], max_tokens=100)
    assert ("and so on and so on", "", "eos") == (result.reasoning, result.text, result.finish_reason)
    assert result.completion_tokens - 1 == result.reasoning_tokens  # without the token that ends the answer


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("lookup", [False, True])
def test_a_grammar_holds_after_the_block(lookup: bool, logprobs: int | None, token_thinker: Expert) -> None:
    """The think block is free, the line breaks after it are those of the template, then the grammar rules."""
    script = [*token_thinker._base.tokenizer.encode("<think>\nCount; {them};\n</think>")]
    begin = len(token_thinker.builder.build(PROMPT, {"enable_thinking": True}).request.prompt_ids)

    def say(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        if token_ids.size - begin < len(script):
            logits[script[token_ids.size - begin]] = 1000
        return logits

    result = token_thinker.generate(
        PROMPT,
        enable_thinking=True,
        regex="[0-9]{3}!",
        processors=[say],
        prompt_lookup=lookup,
        logprobs=logprobs,
        max_tokens=100,
    )
    assert ("Count; {them};", len(script)) == (result.reasoning, result.reasoning_tokens)
    assert result.text[:3].isdigit()
    assert ("!", "grammar", True) == (result.text[3:], result.finish_reason, result.grammar_complete)
    gap = token_thinker._base.tokenizer.encode("\n\n")
    assert gap == list(result.tokens[len(script) :][: len(gap)])


def test_a_grammar_where_the_model_does_not_think(token_thinker: Expert) -> None:
    """The answer may begin at once, and is under the grammar then; without thinking it has to."""
    for thinking in (True, False):
        result = token_thinker.generate(PROMPT, enable_thinking=thinking, choice=["yes", "no"], max_tokens=50)
        if not result.reasoning:
            assert result.text in ("yes", "no")
    assert not result.reasoning


def test_no_end_inside_the_block(token_thinker: Expert) -> None:
    """A model cannot end while thinking, so an answer under a grammar is never empty by accident."""
    think = token_thinker._base.tokenizer.token_to_id("<think>")

    def end(_: Any, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[[think, 2]] += (1000, 2000)
        return logits

    result = token_thinker.generate(
        PROMPT, enable_thinking=True, regex="[0-9]{3}", processors=[end], max_tokens=20
    )
    assert ("length", "", False) == (result.finish_reason, result.text, result.grammar_complete)


def test_a_grammar_needs_tags_that_are_tokens(thinker: Expert) -> None:
    """Where the tags are plain text the end of the block cannot be told token by token."""
    with pytest.raises(GrammarError, match="<think> and </think>"):
        thinker.generate(PROMPT, enable_thinking=True, regex="a")
    assert "a" == thinker.generate(PROMPT, regex="a").text


def test_a_prompt_in_tokens_has_no_reasoning(thinker: Expert) -> None:
    """Nobody knows whether such a prompt opened a think block, so an answer to it is text from its beginning."""
    ids = thinker.tokenizer.encode("a")
    result = thinker.generate(prompt_ids=ids, processors=[saying("<think>x</think>y", thinker.tokenizer)])
    assert ("<think>x</think>y", "", 0) == (result.text, result.reasoning, result.reasoning_tokens)
