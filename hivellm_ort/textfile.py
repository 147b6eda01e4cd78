"""Decodes text files: UTF-8, or the encoding of the byte order mark."""

from __future__ import annotations

import codecs

__all__ = ["decode_text", "is_marked"]

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes) -> str:
    r"""Decode a text file by its byte order mark, else as UTF-8. The mark is left out.

    `Out-File` of Windows PowerShell writes UTF-16 with a mark, Notepad UTF-8 with one. Line ends
    become `\n`, as in Python's text files, because models are trained on that.

    Args:
        data: The bytes of the whole file.

    Raises:
        UnicodeDecodeError: The bytes are not valid in that encoding.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    text = data[len(mark) :].decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_marked(data: bytes) -> bool:
    """Return whether the first bytes of a file, at least four, start with a byte order mark."""
    return data.startswith(tuple(mark for mark, _ in _MARKS))
