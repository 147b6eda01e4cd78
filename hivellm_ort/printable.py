"""Texts of packages and models, safe to show on a terminal."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["escaped", "printable"]

# Controls (C0 with ESC, C1), formats (text direction, zero width, tags), lone surrogates, line separators.
_STEERING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them
_SUSPECT = re.compile(r"[^ -~]")


def escaped(text: str, *, keep: str = "\n\t") -> str:
    r"""Return a text in which every character that could steer a terminal is an escape, such as `\x1b`.

    Those are control characters, marks of text direction, characters without width, lone surrogates and line
    separators (Unicode categories Cc, Cf, Cs, Zl and Zp). The two joiners of Persian, Indic scripts and emoji stay.

    Args:
        text: Any text.
        keep: Control characters that stay; default: newline and tab.
    """

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        if char in keep or char in _JOINERS or unicodedata.category(char) not in _STEERING:
            return char
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _SUSPECT.sub(escape, text)


def printable(text: str, *, most: int | None = None) -> str:
    """Return a text as `escaped` gives it, on one line: each run of whitespace becomes one space.

    Args:
        text: Any text.
        most: Most characters of it that are shown, before the escapes; "…" stands for the rest. Default: all of them.
    """
    line = " ".join(text.split())
    if most is not None and len(line) > most:
        line = f"{line[: most - 1]}…"
    return escaped(line, keep="")
