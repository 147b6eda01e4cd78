"""Text files of every encoding that says which it is."""

from __future__ import annotations

import codecs

import pytest

from hivellm_ort.textfile import decode_text


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_mark_says_the_encoding(mark: bytes, encoding: str) -> None:
    """Text is read by its mark, the mark is no part of it, and lines end as Python's do."""
    assert "naïve\n→ 🙂\n\n" == decode_text(mark + "naïve\r\n→ 🙂\n\r".encode(encoding))


def test_an_empty_file_is_an_empty_text() -> None:
    """A file of nothing, and one of a mark alone, hold no text."""
    assert ["", ""] == [decode_text(b""), decode_text(codecs.BOM_UTF16_LE)]


@pytest.mark.parametrize("data", [b"caf\xe9", codecs.BOM_UTF16_LE + b"a", codecs.BOM_UTF8 + b"\xff"])
def test_other_bytes_are_refused(data: bytes) -> None:
    """Bytes that are not what their mark says, or no UTF-8 without one, are an error."""
    with pytest.raises(UnicodeDecodeError):
        decode_text(data)
