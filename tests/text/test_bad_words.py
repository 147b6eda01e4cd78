"""Words that must not occur, on the tokenizers in use."""

from __future__ import annotations

import numpy as np
import pytest

from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import make_processors
from hivellm_ort.text.tokenizer import TextTokenizer


def allowed(tokenizer: TextTokenizer, words: list[str], answer: list[int]) -> set[int]:
    """Return the tokens that may follow an answer."""
    process = make_processors(
        SamplingParams(bad_words=words),
        prompt_length=0,
        eos_token_ids=(),
        token_texts=lambda: TokenTexts(tokenizer.token_bytes),
    )
    assert process is not None
    logits = process(np.array(answer, np.int64), np.zeros(len(tokenizer.token_bytes), np.float32))
    return set(np.flatnonzero(logits == 0).tolist())


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@pytest.mark.parametrize("before", ["", " ", "(", "\n", "x", "é", "a ", "((("])
@pytest.mark.parametrize("word", ["ab", "\n", "a.", "é", "b a"])
def test_no_place_lets_a_word_through(
    name: str, before: str, word: str, request: pytest.FixtureRequest
) -> None:
    """After a space, a bracket, a line break, inside a word: one of the tokens of the text is not allowed."""
    tokenizer: TextTokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(f"{before}{word}")

    assert word in tokenizer.decode(ids)
    assert any(ids[i] not in allowed(tokenizer, [word], ids[:i]) for i in range(len(ids)))


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_no_other_spelling_lets_a_word_through(name: str, request: pytest.FixtureRequest) -> None:
    """Token by token at random from what is allowed, no text holds a word, and most tokens stay allowed."""
    tokenizer: TextTokenizer = request.getfixturevalue(name)
    words = ["ab", "ba", "a.", "\n", "é"]
    likely = sorted({i for text in ("a b", "ab.", "(ba", "\né", "xab") for i in tokenizer.encode(text)})
    rng = np.random.default_rng(7)
    for _ in range(60):
        answer: list[int] = []
        for _ in range(12):
            free = allowed(tokenizer, words, answer)
            assert len(free) > len(tokenizer.token_bytes) / 2
            answer.append(int(rng.choice([token_id for token_id in likely if token_id in free])))

        assert [] == [word for word in words if word in tokenizer.decode(answer)]


def test_line_breaks_on_a_sentencepiece_vocabulary(metaspace: TextTokenizer) -> None:
    """A line break there is a token of one byte, which no encoding of a text of one line break gives alone."""
    (line_break,) = [token_id for token_id, text in enumerate(metaspace.token_bytes) if text == b"\n"]

    assert [line_break] != metaspace.encode("\n")
    assert line_break not in allowed(metaspace, ["\n"], [])
