"""Words that must not occur, against the definition: no token may complete one in the text of the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.decoding.arrays import IntArray
from hivellm_ort.decoding.bad_words import TokenTexts

PIECES = st.text("ab\N{LATIN SMALL LETTER E WITH ACUTE}\n", max_size=4).map(str.encode)
# Bytes of one character may be tokens of their own.
VOCABULARIES = st.lists(PIECES | st.sampled_from([b"\xc3", b"\xa9", b"", b"a\xc3"]), min_size=1, max_size=12)
WORDS = st.lists(st.text("ab\N{LATIN SMALL LETTER E WITH ACUTE}\n", min_size=1, max_size=5), max_size=4)


def forbidden(
    texts: list[bytes],
    words: list[str],
    token_ids: list[int],
    *,
    prompt_length: int = 0,
    width: int | None = None,
) -> set[int]:
    """Return the tokens that may not follow."""
    edit = TokenTexts(texts).forbid(words, prompt_length=prompt_length)
    logits = np.zeros(width or len(texts), np.float32)
    ids: IntArray = np.array(token_ids, np.int64)
    edit(ids, logits)
    return set(np.flatnonzero(np.isneginf(logits)).tolist())


@given(data=st.data(), texts=VOCABULARIES, words=WORDS)
def test_no_word_is_ever_completed(data: st.DataObject, texts: list[bytes], words: list[str]) -> None:
    """From a text without the words exactly those tokens are forbidden after which it has one."""
    sought = [word.encode() for word in words]
    prompt = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=3))
    answer: list[int] = []
    for token_id in data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=8)):
        text = b"".join(texts[i] for i in answer)
        expected = {i for i in range(len(texts)) if any(word in text + texts[i] for word in sought)}

        assert expected == forbidden(texts, words, [*prompt, *answer], prompt_length=len(prompt))
        if token_id not in expected:
            answer.append(token_id)


def test_a_word_may_be_written_in_other_tokens() -> None:
    """What the tokenizer would not write itself is forbidden too, and tokens without text change nothing."""
    texts = [b"DROP", b" DROP", b"(DROP", b"D", b"DR", b"OP", b"ROP TABLE", b"drop", b"", b"("]

    assert {0, 1, 2} == forbidden(texts, ["DROP"], [9])
    assert {0, 1, 2, 6} == forbidden(texts, ["DROP"], [9, 3])
    assert {0, 1, 2, 5} == forbidden(texts, ["DROP"], [9, 4, 8])


def test_the_logits_may_be_wider() -> None:
    """Ids that no token has, in logits that are padded, are tokens without text."""
    assert {1} == forbidden([b"a", b"b"], ["ab"], [0, 3], width=5)


def test_end_tokens_stay_allowed() -> None:
    """An end token is no part of the text, however it is written."""
    logits = np.zeros(3, np.float32)
    edit = TokenTexts([b"</s>", b"a</s>", b"b"]).forbid(["</s>"], prompt_length=0, end_token_ids={0})
    edit(np.array([2], np.int64), logits)

    assert [0, -np.inf, 0] == logits.tolist()


@pytest.mark.parametrize("rounds", [1, 2])
def test_calls_do_not_depend_on_each_other(rounds: int) -> None:
    """Tokens that are taken back do not count."""
    edit = TokenTexts([b"a", b"b"]).forbid(["ab"], prompt_length=0)
    for _ in range(rounds):
        for token_ids, expected in (([0], [0, -np.inf]), ([1], [0, 0]), ([], [0, 0])):
            logits = np.zeros(2, np.float32)
            edit(np.array(token_ids, np.int64), logits)
            assert expected == logits.tolist()
