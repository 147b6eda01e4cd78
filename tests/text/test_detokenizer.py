"""The incremental detokenizer against decoding everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_samples import byte_level_tokenizer, metaspace_tokenizer
from tokenizers import decoders

from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.tokenizer import TextTokenizer, Tokenizer

DECODERS = {
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "word piece": decoders.WordPiece(cleanup=True),
    "bpe": decoders.BPEDecoder(),
    "ctc": decoders.CTC(pad_token="b", word_delimiter_token="▁"),
    "none": None,
}
TOKENIZERS = {name: TextTokenizer(metaspace_tokenizer(decoder)) for name, decoder in DECODERS.items()}
TOKENIZERS["byte level"] = TextTokenizer(byte_level_tokenizer())


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return what each push, and the flush, gives."""
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_pieces_make_up_the_whole(name: str, data: st.DataObject) -> None:
    """Whatever the ids, the pieces joined are what decoding all of them gives."""
    tokenizer = TOKENIZERS[name]
    # Half of the draws from the few tokens that are text, specials or unknown, so that runs of all kinds occur.
    rare = st.sampled_from([0, 1, 2, *range(258, tokenizer.vocab_size + 2)])
    ids = data.draw(st.lists(rare | st.integers(0, tokenizer.vocab_size + 2), max_size=80))

    pieces = pieces_of(tokenizer, ids)

    assert tokenizer.decode(ids) == "".join(pieces)


@given(text=st.text(st.characters(codec="utf-8"), max_size=40), cut=st.integers(0, 160))
@example(text="👩‍🚀\N{REPLACEMENT CHARACTER}é", cut=3)
def test_no_piece_shows_a_broken_character(text: str, cut: int) -> None:
    """Every piece but the last continues the text itself, even if the answer ends inside a character."""
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode(text)[:cut]

    *pieces, rest = pieces_of(tokenizer, ids)

    assert all(text.startswith(shown) for shown in accumulate(pieces))
    assert tokenizer.decode(ids) == "".join(pieces) + rest


def test_a_character_comes_when_its_last_byte_does() -> None:
    """A character of four byte tokens is shown at the fourth, and text without riddles at once."""
    tokenizer = TOKENIZERS["byte level"]
    expected = ["S", "", "", "", "\U000a0000", ""]

    assert expected == pieces_of(tokenizer, tokenizer.encode("S\U000a0000"))


def test_a_run_of_byte_tokens_waits_for_its_end() -> None:
    """ByteFallback turns a whole run into U+FFFD if its last byte is wrong, so none of it is shown early."""
    tokenizer = TOKENIZERS["llama"]
    euro = [3 + byte for byte in "€".encode()]
    letter = tokenizer.token_to_id("a")
    assert letter is not None

    sound, broken = ["", "", "", "€a", ""], ["", "", "", "", "\N{REPLACEMENT CHARACTER}" * 4]

    assert sound == pieces_of(tokenizer, [*euro, letter])
    assert broken == pieces_of(tokenizer, [*euro, 3 + 0xFF])


def test_the_stripped_space_is_only_the_first() -> None:
    """Metaspace drops the space that opens an answer and keeps those inside."""
    tokenizer = TOKENIZERS["llama"]
    word = tokenizer.token_to_id("▁a")
    assert word is not None

    expected = ["", "a", " a", ""]

    assert expected == pieces_of(tokenizer, [1, word, word])


def test_flush_starts_anew() -> None:
    """After a flush the same object decodes the next answer from its beginning."""
    tokenizer = TOKENIZERS["llama"]
    word = tokenizer.token_to_id("▁a")
    assert word is not None
    detokenizer = IncrementalDetokenizer(tokenizer)

    expected = ["a", " a", ""]

    for _ in range(2):
        assert expected == [detokenizer.push(word), detokenizer.push(word), detokenizer.flush()]


class CountingTokenizer(TextTokenizer):
    """Records how many ids each decoding took."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer._tokenizer)
        self.counts: list[int] = []

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode and count."""
        self.counts.append(len(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize(("name", "token"), [("byte level", "ÿ"), ("byte level", "a"), ("llama", "<0xFF>")])
def test_cost_of_a_token_is_bounded(name: str, token: str) -> None:
    """Neither text nor endless broken bytes make a token cost more, the longer the answer."""
    tokenizer = CountingTokenizer(TOKENIZERS[name])
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None

    pieces_of(tokenizer, [token_id] * 3000)

    # Three thousand tokens at up to 32 each; a run of <0xNN> is decoded once, however long.
    assert sum(tokenizer.counts) < 3000 * 32
