"""The tokenizer read from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hivellm_ort.errors import LoadError
from hivellm_ort.text.tokenizer import TextTokenizer


@given(text=st.text())
def test_byte_level_text_comes_back(byte_level: TextTokenizer, text: str) -> None:
    """Any text survives encoding and decoding."""
    assert text == byte_level.decode(byte_level.encode(text), skip_special_tokens=False)


def test_code_keeps_its_spaces(byte_level: TextTokenizer) -> None:
    """The space before a point stays, whatever clean-up the configuration asks for."""
    text = "SELECT ' .' , 'it 's' FROM t"

    assert text == byte_level.decode(byte_level.encode(text))


def test_special_tokens_in_the_text_are_read_as_such(byte_level: TextTokenizer) -> None:
    """A rendered template's turn markers become single ids, and decoding leaves them out."""
    text, words = "<|im_start|>user<|im_end|>", "user"
    ids = byte_level.encode(text)

    assert byte_level.encode(words) == ids[1:-1]
    assert words == byte_level.decode(ids)
    assert text == byte_level.decode(ids, skip_special_tokens=False)


def test_special_means_marked_special(byte_level: TextTokenizer) -> None:
    """An added token that is not marked special, such as <think>, is text."""
    token, expected = "<think>", [True, False, False]
    token_id = byte_level.token_to_id(token)

    assert token_id is not None
    assert token == byte_level.decode([token_id])
    assert expected == [byte_level.is_special(i) for i in (2, token_id, 10**6)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1 WHERE a < b", []),
        ("a<|im_end|>é<|im_start|>", [(1, 11), (12, 24)]),
        ("<|im_start<|im_end|>", [(10, 20)]),
        ("<think>", []),
    ],
)
def test_marker_spans(byte_level: TextTokenizer, text: str, expected: list[tuple[int, int]]) -> None:
    """Places of markers are counted in characters."""
    assert expected == byte_level.marker_spans(text)


def test_ids_and_tokens(byte_level: TextTokenizer) -> None:
    """Ids and tokens answer to each other, and strangers have none."""
    token, token_id = "<|im_end|>", 2

    assert token == byte_level.id_to_token(token_id)
    assert token_id == byte_level.token_to_id(token)
    assert byte_level.token_to_id("<no such token>") is None
    assert byte_level.id_to_token(byte_level.vocab_size) is None


def test_byte_tokens_are_those_the_decoder_gathers(
    metaspace: TextTokenizer, byte_level: TextTokenizer
) -> None:
    """A token written <0x41> is a byte only where ByteFallback decodes it."""
    byte = metaspace.token_to_id("<0x41>")
    letter = metaspace.token_to_id("a")

    assert byte is not None
    assert letter is not None
    expected = [True, False, False]
    assert expected == [metaspace.is_byte(token_id) for token_id in (byte, letter, 10**6)]
    assert not any(byte_level.is_byte(token_id) for token_id in range(byte_level.vocab_size))


@given(data=st.data())
def test_bytes_of_tokens_make_up_the_text(byte_level: TextTokenizer, data: st.DataObject) -> None:
    """Decoding is putting the bytes of the tokens together, those of special tokens left out."""
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size + 2), max_size=30))
    known = [token_id for token_id in ids if token_id < byte_level.vocab_size]
    together = b"".join(byte_level.token_bytes[token_id] for token_id in known)

    assert together.decode(errors="replace") == byte_level.decode(ids)


@given(text=st.text("ab. \n\N{LATIN SMALL LETTER E WITH ACUTE}→"))
def test_bytes_of_tokens_with_byte_fallback(metaspace: TextTokenizer, text: str) -> None:
    """A space that a token begins with belongs to it, and a token of one byte is that byte."""
    ids = metaspace.encode(f"a{text}")

    assert f" a{text}".encode() == b"".join(metaspace.token_bytes[token_id] for token_id in ids)


def test_special_ids(byte_level: TextTokenizer) -> None:
    """They are the tokens that `decode` leaves out."""
    expected = [token_id for token_id in range(byte_level.vocab_size) if byte_level.is_special(token_id)]

    assert [0, 1, 2] == expected == sorted(byte_level.special_ids)


def test_truncation_padding_and_post_processing_are_off(byte_level: TextTokenizer, tmp_path: Path) -> None:
    """What tokenizer.json says about cutting, filling and wrapping a text is not done."""
    raw = Tokenizer.from_str(byte_level._tokenizer.to_str())
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    content = json.loads(raw.to_str())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    text = "SELECT name FROM users"

    assert byte_level.encode(text) == TextTokenizer.from_folder(tmp_path).encode(text)


def test_missing_file(tmp_path: Path) -> None:
    """A folder without tokenizer.json is a LoadError that names the file and not the folder."""
    with pytest.raises(LoadError, match=r"^tokenizer\.json: cannot be read") as caught:
        TextTokenizer.from_folder(tmp_path)

    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": "1.0"}', b"\xff\xfe"])
def test_malformed_file(tmp_path: Path, content: bytes) -> None:
    """A file that holds no tokenizer is a LoadError that names it."""
    (tmp_path / "tokenizer.json").write_bytes(content)

    with pytest.raises(LoadError, match=r"^tokenizer\.json: "):
        TextTokenizer.from_folder(tmp_path)


def test_lone_surrogates_are_refused(byte_level: TextTokenizer) -> None:
    """Text that has no UTF-8 form is a ValueError."""
    with pytest.raises(ValueError, match="lone surrogates"):
        byte_level.encode("\ud800")
