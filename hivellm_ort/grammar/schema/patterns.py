"""Translates regular expressions of JSON schemas for llguidance, and matches texts."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["PatternError", "all_but", "matches", "parts", "translated", "without_look_around"]

# ECMAScript's whitespace without U+FEFF, which Python does not count; and the whitespace of either.
_SPACE = r"\t\n\x0B\x0C\r \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
_NO_SPACE = _SPACE + r"\x1C-\x1F\u0085\uFEFF"
_DOT = r"[^\n\r\u2028\u2029]"
_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")
# Escapes that mean the same in ECMAScript and in Rust, beside those of punctuation.
_SAME = frozenset("dDwWtnrfvux")
# One or two equal literal characters, at the beginning or anywhere.
_AHEAD = re.compile(
    r"\^\(\?!(?P<far>\.\*)?(?P<char>\\[^\w\s]|[\w@#%&=:;,<>~!'\"-])(?P<twice>(?(far)(?P=char)|(?!)))?\)"
)
_QUANTIFIER = re.compile(r"\{\d+(?:,\d*)?\}")


class PatternError(ValueError):
    """A regular expression cannot be enforced. The message says why."""


def translated(pattern: str) -> str:
    r"""Translate an ECMAScript pattern to Rust's syntax, with the same meaning.

    `.` and `\s` have their common meaning in ECMAScript and Python. Classes mean what they mean in ECMAScript,
    without Rust's nesting and intersection.

    Args:
        pattern: The pattern of a schema.

    Raises:
        PatternError: It has a construct that Rust lacks or understands differently.
    """
    written: list[str] = []
    place = 0
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            piece, place = _escape(pattern, place, inside=False)
        elif char == "[":
            piece, place = _bracket(pattern, place)
        elif char == "." or (char == "(" and pattern.startswith("(?", place)):
            piece, place = (_DOT, place + 1) if char == "." else _group(pattern, place)
        else:
            # A brace that is not a quantifier is a character.
            piece = "\\{" if char == "{" and not _QUANTIFIER.match(pattern, place) else char
            place += 1
        written.append(piece)
    return "".join(written)


def parts(pattern: str) -> list[str]:
    r"""Split an ECMAScript pattern with look-aheads into patterns that must all match.

    It supports `(?!c)` and `(?!.*cc)` of one character at the beginning, as Zod writes them for addresses. Other
    patterns are returned unchanged.

    Args:
        pattern: The pattern of a schema.
    """
    found = []
    rest = pattern
    while (ahead := _AHEAD.match(rest)) is not None:
        char = ahead["char"]
        other = f"[^{char}]"
        if ahead["far"] is None:
            found.append(f"^(?:{other}[\\s\\S]*)?$")
        else:
            found.append(f"^(?:{char}?{other})*{char}?$" if ahead["twice"] else f"^{other}*$")
        rest = "^" + rest[ahead.end() :]
    return [*found, rest]


def without_look_around(pattern: str) -> str:
    """Return the pattern without its look-arounds. It matches at least the same texts."""
    kept: list[str] = []
    place = 0
    while place < len(pattern):
        if pattern.startswith(_LOOK_AROUND, place):
            place = _closing(pattern, place)
            continue
        end = _past_one(pattern, place)
        kept.append(pattern[place:end])
        place = end
    return "".join(kept)


def all_but(texts: list[str]) -> str:
    """Return a pattern, in Rust's syntax, that matches every other text."""
    return f"^(?:{_all_but(sorted(set(texts)))})$"


def matches(pattern: str, text: str, kind: str = "pattern") -> bool:
    """Return whether a text matches.

    Args:
        pattern: A result of `translated`, or a format that llguidance knows.
        text: The text.
        kind: `pattern` or `format`.

    Raises:
        PatternError: llguidance does not compile it.
    """
    compiled = _matcher(pattern, kind)
    if compiled is None:
        return False
    matcher = compiled.deep_copy()
    content = list(json.dumps(text, ensure_ascii=False).encode())
    return matcher.try_consume_tokens(content) == len(content) and matcher.is_accepting()


@lru_cache(256)
def _matcher(pattern: str, kind: str) -> LLMatcher | None:
    """Return a matcher on bytes; None for an empty language."""
    from llguidance import LLMatcher

    schema = json.dumps({"type": "string", kind: pattern})
    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_json_schema(schema), log_level=0)
    if not matcher.is_error():
        return matcher
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "")
    if "Unsatisfiable" in said:
        return None
    raise PatternError(said.removeprefix("error: ")[:200])


@cache
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _group(pattern: str, place: int) -> tuple[str, int]:
    if pattern.startswith(_LOOK_AROUND, place):
        raise PatternError("look-around is not supported")
    for opening, written in (("(?:", "(?:"), ("(?<", "(?<"), ("(?P<", "(?P<")):
        if pattern.startswith(opening, place):
            return written, place + len(opening)
    raise PatternError(
        f"{pattern[place : place + 4]!r} means different things in different regular expressions"
    )


def _escape(pattern: str, place: int, *, inside: bool) -> tuple[str, int]:
    """Return the escape at an index in Rust's syntax, and the index after it."""
    char = pattern[place + 1 : place + 2]
    end = place + 2
    if not char:
        raise PatternError("it ends with a backslash")
    if char == "s":
        return (_SPACE if inside else f"[{_SPACE}]"), end
    if char == "S":
        return f"[^{_NO_SPACE}]", end
    if char in "pP" or char in _SAME or not char.isalnum():
        # Rust knows every escaped punctuation but these, which are ECMAScript's letters themselves.
        return (char if char in "<>_" or not char.isascii() else pattern[place:end]), end
    if char == "c" and pattern[end : end + 1].isalpha() and pattern[end].isascii():
        return f"\\x{ord(pattern[end]) % 32:02X}", end + 1
    if char == "0" and not pattern[end : end + 1].isdigit():
        return "\\x00", end
    if char == "b" and inside:
        return "\\x08", end
    if char in "bB":
        raise PatternError("look-around is not supported: \\b is one")
    if char == "A" or char == "z":
        return pattern[place:end], end
    if char == "Z":
        return "\\z", end
    if char.isdigit() or char == "k":
        raise PatternError("backreferences are not supported")
    raise PatternError(f"the escape \\{char} is unknown")


def _bracket(pattern: str, place: int) -> tuple[str, int]:
    """Return the class at an index in Rust's syntax, and the index after it."""
    place += 1
    written = ["["]
    if pattern.startswith("^", place):
        written.append("^")
        place += 1
    if pattern.startswith("]", place):
        # Nothing, and with ^ everything, in ECMAScript; the character itself in Python.
        raise PatternError("an empty class means different things in different regular expressions")
    while place < len(pattern):
        char = pattern[place]
        if char == "]":
            return "".join([*written, "]"]), place + 1
        if char == "\\":
            piece, place = _escape(pattern, place, inside=True)
        else:
            # Only the dash of a range stays unescaped.
            bare = char.isalnum() or char.isspace() or not char.isascii()
            bare = bare or (char == "-" and not pattern.startswith("-", place + 1))
            piece, place = (char if bare else f"\\{char}"), place + 1
        written.append(piece)
    raise PatternError("unclosed class")


def _past_one(pattern: str, place: int) -> int:
    """Return the index after the escape, class or character at an index."""
    if pattern[place] == "\\":
        return place + 2
    if pattern[place] != "[":
        return place + 1
    place += 1
    while place < len(pattern) and pattern[place] != "]":
        place += 2 if pattern[place] == "\\" else 1
    return place + 1


def _closing(pattern: str, place: int) -> int:
    """Return the index after the closing parenthesis of the one at an index."""
    depth = 0
    while place < len(pattern):
        depth += {"(": 1, ")": -1}.get(pattern[place], 0)
        place = _past_one(pattern, place)
        if depth == 0:
            return place
    return place


def _all_but(texts: list[str]) -> str:
    firsts = sorted({text[0] for text in texts if text})
    if not firsts:
        return "(?s:.+)"
    listed = "".join(_letter(char) for char in firsts)
    parts = [] if "" in texts else [""]
    parts.append(f"[^{listed}](?s:.*)")
    for char in firsts:
        rest = [text[1:] for text in texts if text[:1] == char]
        parts.append(f"{_letter(char)}(?:{_all_but(rest)})")
    return "|".join(parts)


def _letter(char: str) -> str:
    return char if char.isalnum() and char.isascii() else f"\\x{{{ord(char):X}}}"
