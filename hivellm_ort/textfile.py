"""Text files as editors and shells write them: UTF-8, or what a byte order mark says."""

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
    r"""Return the text of a file: in the encoding of its byte order mark, which is left out, else in UTF-8.

    `Out-File` of Windows PowerShell writes UTF-16 with a mark, Notepad UTF-8 with one. Every line ends with `\n`, as
    in Python's text files: a model was trained on that.

    Args:
        data: The bytes of the whole file.

    Raises:
        UnicodeDecodeError: The bytes are not text of that encoding.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    text = data[len(mark) :].decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_marked(data: bytes) -> bool:
    """Return whether a file's first bytes, four or more, begin with a byte order mark."""
    return data.startswith(tuple(mark for mark, _ in _MARKS))
