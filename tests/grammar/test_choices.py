"""Choices of many texts, of long ones, and of ones that a model cannot write."""

from __future__ import annotations

import json
import random
import time

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from walking import END, allowed, answer, compiled, ids, text_of

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import GrammarLimits

BOUNDED = 30.0


def many(count: int, common: str) -> list[str]:
    """Return different texts of about forty characters that begin alike."""
    rng = random.Random(count)
    letters = "abcdefghijklmnopqrstuvwxyzäöü東京🙂 "
    return [f"{common}{''.join(rng.choices(letters, k=30))} {index}" for index in range(count)]


@pytest.mark.parametrize("common", ["", "Kategorie für Größe und 東京 "], ids=["plain", "common"])
@pytest.mark.parametrize("as_enum", [False, True], ids=["choice", "enum"])
def test_every_one_of_two_thousand_options_can_be_chosen(common: str, as_enum: bool) -> None:
    """No answer fails in its middle, for a choice as for the same list in a JSON schema."""
    begin = time.monotonic()
    options = many(2_000, common)
    grammar = Grammar.json_schema({"enum": options}) if as_enum else Grammar.choice(options)
    written = [json.dumps(option, ensure_ascii=False) if as_enum else option for option in options]
    for text in random.Random(0).sample(written, 8):
        constraint = compiled(grammar)
        for token in ids(text):
            assert token in [*constraint.forced_tokens(), *allowed(constraint)]
            constraint.accept(token)
        assert constraint.complete
    drawn = text_of(answer(compiled(grammar), random.Random(2), length=200))
    assert drawn in written
    assert time.monotonic() - begin < BOUNDED


def test_more_options_than_the_limit_are_refused_at_once() -> None:
    """The message names the limit, and says what to do."""
    begin = time.monotonic()
    with pytest.raises(GrammarError, match=r"it has 20001 options, more than GrammarLimits\.max_options"):
        compiled(Grammar.choice([str(index) for index in range(20_001)]))
    with pytest.raises(GrammarError, match=r"more than GrammarLimits\.max_bytes"):
        compiled(Grammar.choice(["a" * 600_000, "b" * 600_000]))
    assert time.monotonic() - begin < BOUNDED
    one = compiled(Grammar.choice(["ab"]), limits=GrammarLimits(max_options=1))
    assert "ab" == text_of(answer(one, random.Random(0)))


def test_an_option_that_no_tokens_make_is_named() -> None:
    """It could be begun, and would end in the middle."""
    # Every byte of the text that llguidance is tried with, and not those of other letters.
    text = 'A b  c\n\t{"key": [1.5, "é 東 🙂"]}\r\n' + "abcdefghijklmnopqrstuvwxyz"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = sorted(set(byte_level.pre_tokenize_str(text)[0][0]))
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    compiler = GrammarCompiler(tokenizer.to_str, tokenizer.get_vocab_size() + 2)
    compiler.compile(Grammar.choice(["yes", "né"]), end_token_ids=[END])
    with pytest.raises(GrammarError, match=r"choice\[1\]: this model has no tokens that make 'yes ж'"):
        compiler.compile(Grammar.choice(["yes", "yes ж"]), end_token_ids=[END])
