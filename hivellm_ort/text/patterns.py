r"""Checks that regular expressions of a `tokenizer.json` run in linear time.

The tokenizers library matches them by backtracking (Oniguruma), in one call that nothing can interrupt. So the form
of an expression is checked before the library gets it. An expression is a choice between alternatives. Each is:

- a part of bounded length, such as `'s`, ` ?` or `\p{N}{1,3}`,
- then optionally one loop over single characters, such as `\p{L}+`,
- then only parts that cannot fail, such as `[\r\n]*` or `(?:'s|'t)?`.

One part that can fail may follow the loop (`\s*[\r\n]+`) if the next alternatives begin with the same loop and the
last of them cannot fail after it (`\s+`). Then the characters are matched by that one and not read again.
The expressions of GPT-2, Llama 3, Qwen, DeepSeek, Mistral, Falcon and o200k have this form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from hivellm_ort.errors import LoadError

__all__ = ["MAX_PATTERN", "Form", "form_of"]

MAX_PATTERN = 16_384
"""Most characters of an expression. The longest published one has some hundred; a list of letters may be long."""

_MAX_ALTERNATIVES = 64  # in an expression, including groups
_MAX_CHOICES = 256  # ways to match the bounded part of an alternative
_MAX_LENGTH = 256  # characters of a bounded part
_MAX_LEAST = 16  # characters that a loop must take
_MAX_DEPTH = 8  # of groups

# Alternatives of published tokenizers with another form, and the fewest characters they match. The first (EXAONE) is
# linear. The others (digits grouped from the right, DeepSeek-LLM) are quadratic in a run of digits or spaces.
_PUBLISHED = {
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+": 1,
    r"\d{1,3}(?=(?:\d{3})*\b)": 1,
    r"(?=(\d{3})+(?!\d))": 0,
    r"\s+$": 1,
}
_SQUARE = frozenset(list(_PUBLISHED)[1:])
# These give back one character of the loop before them, so they fail only for a run of one character.
_HELD = {(r"\s", r"(?!\S)"), (r"\s", r"(?=\s)")}

_QUANTIFIER = re.compile(r"([*+?])([+?]?)|\{([0-9]*)(,?)([0-9]*)\}([+?]?)")
_PROPERTY = re.compile(r"\\[pP]\{\^?[A-Za-z0-9_ ]{1,40}\}")
_CODE = re.compile(r"\\x[0-9A-Fa-f]{1,2}|\\x\{[0-9A-Fa-f]{1,6}\}|\\u[0-9A-Fa-f]{4}")
_SIMPLE = frozenset("sSdDwWhHrntfvae")
_ANCHORS = frozenset("bBAzZ")
_LOOKS = ("(?=", "(?!", "(?<=", "(?<!")
_GROUPS = ("(?:", "(?i:", "(?>")


class _Part(NamedTuple):
    """A part of an alternative, with its repetition.

    Attributes:
        text: Its source, without the repetition.
        least: Fewest repetitions.
        most: Most repetitions; None for any number.
        single: Whether one repetition is exactly one character, in one way.
        shortest: Fewest characters of one repetition.
        longest: Most characters of one repetition; None for any number.
        choices: Number of ways one repetition can match.
    """

    text: str
    least: int
    most: int | None
    single: bool
    shortest: int
    longest: int | None
    choices: int

    @property
    def may_fail(self) -> bool:
        return self.least > 0

    @property
    def bounded(self) -> bool:
        return self.most is not None and self.longest is not None


@dataclass(frozen=True)
class _Alternative:
    text: str
    parts: tuple[_Part, ...]

    @property
    def shortest(self) -> int:
        return sum(part.shortest * part.least for part in self.parts)


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """The reason why an expression is refused."""


class Form(NamedTuple):
    """The analysis of an expression.

    Attributes:
        shortest: Fewest characters that it matches.
        cost: Most characters read, with repetitions, to find that it does not match at a position.
        square: Whether its time is quadratic in a run of digits or spaces.
    """

    shortest: int
    cost: int
    square: bool


def form_of(pattern: str, where: str) -> Form:
    """Check an expression.

    Args:
        pattern: The expression, in Oniguruma's syntax.
        where: Its position in the file, for messages.

    Raises:
        LoadError: It is too long, or not known to run in linear time.
    """
    try:
        alternatives = _Reader(pattern).alternatives()
        cost = sum(
            1 if one.text in _PUBLISHED else _cost(one, alternatives[index + 1 :])
            for index, one in enumerate(alternatives)
        )
    except _Refused as fault:
        raise LoadError(
            f"{where}: this regular expression could take time beyond all bounds: {fault}; use a tokenizer with the "
            "expression of a published model, or update hivellm-ort"
        ) from None
    shortest = min(_PUBLISHED.get(one.text, one.shortest) for one in alternatives)
    return Form(shortest, cost, any(one.text in _SQUARE for one in alternatives))


def _cost(alternative: _Alternative, following: list[_Alternative]) -> int:
    """Return the cost of a failing alternative. Raises if it is unbounded."""
    head, loop, rest = _split(alternative)
    choices = length = 1
    for part in head:
        most = part.most or 0
        choices *= (most - part.least + 1) * part.choices ** min(most, 16)
        length += most * (part.longest or 0)
        if choices > _MAX_CHOICES or length > _MAX_LENGTH:
            raise _Refused(f"{alternative.text[:80]!r} can match in too many ways")
    cost = choices * length
    if loop is None:
        return cost
    if not all(part.single for part in (loop, *rest) if not part.bounded):
        raise _Refused(f"{alternative.text[:80]!r} repeats what is more than one character")
    if loop.least > _MAX_LEAST:
        raise _Refused(f"{alternative.text[:80]!r} repeats {loop.least} times at least")
    if not any(part.may_fail for part in rest):
        return cost
    first = rest[0]
    if first.least > 1 or not (first.single or first.longest == 0) or any(part.may_fail for part in rest[1:]):
        raise _Refused(f"in {alternative.text[:80]!r} too much follows a repetition")
    if (loop.text, first.text) in _HELD or _taken(head, loop, following):
        return cost + first.choices
    raise _Refused(
        f"{alternative.text[:80]!r} can fail after a repetition, and the next alternative does not take what it read"
    )


def _taken(head: tuple[_Part, ...], loop: _Part, following: list[_Alternative]) -> bool:
    """Return whether a following alternative matches the characters that a failing one has read."""
    for other in following:
        its_head, its_loop, its_rest = _split(other)
        if its_loop is None or its_head != head or its_loop.text != loop.text or its_loop.least > 1:
            return False
        if not any(part.may_fail for part in its_rest):
            return True
    return False


def _split(alternative: _Alternative) -> tuple[tuple[_Part, ...], _Part | None, tuple[_Part, ...]]:
    """Return the bounded parts at the beginning of an alternative, its first loop, and the rest."""
    for index, part in enumerate(alternative.parts):
        if not part.bounded:
            return alternative.parts[:index], part, alternative.parts[index + 1 :]
    return alternative.parts, None, ()


class _Reader:
    """Parses an expression into alternatives. Unknown syntax is refused."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise _Refused(f"it is longer than {MAX_PATTERN} characters")
        self._text = pattern
        self._at = 0
        self._count = 0

    def alternatives(self, depth: int = 0) -> list[_Alternative]:
        """Parse the alternatives up to the end or the closing parenthesis of a group."""
        if depth > _MAX_DEPTH:
            raise _Refused(f"its groups are nested more than {_MAX_DEPTH} deep")
        found, parts, start = [], list[_Part](), self._at
        while True:
            ends = self._at == len(self._text) or self._text[self._at] in "|)"
            if not ends:
                parts.append(self._part(depth))
                continue
            self._count += 1
            if self._count > _MAX_ALTERNATIVES:
                raise _Refused(f"it has more than {_MAX_ALTERNATIVES} alternatives")
            found.append(_Alternative(self._text[start : self._at], tuple(parts)))
            if self._at == len(self._text) or self._text[self._at] == ")":
                if (depth == 0) != (self._at == len(self._text)):
                    raise _Refused("its brackets do not match")
                return found
            self._at += 1
            parts, start = [], self._at

    def _part(self, depth: int) -> _Part:
        start = self._at
        single, shortest, longest, choices = self._atom(depth)
        text = self._text[start : self._at]
        least, most = self._repetition()
        if self._text[self._at : self._at + 1] in ("*", "+", "?") and self._text[self._at - 1] in "*+?}":
            raise _Refused(f"{text[:80]!r} is repeated twice")
        if longest == 0 and (least, most) != (1, 1):
            raise _Refused(f"{text[:80]!r} is repeated, and matches nothing")
        return _Part(text, least, most, single, shortest, longest, choices)

    def _repetition(self) -> tuple[int, int | None]:
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None or not (found[1] or found[3] or found[5]):
            return 1, 1
        self._at = found.end()
        if found[1]:
            if found[2] == "?":
                raise _Refused("it has a lazy repetition")
            return (1 if found[1] == "+" else 0), (1 if found[1] == "?" else None)
        if found[6]:  # Oniguruma reads it as a repetition of a repetition
            raise _Refused("it has a repetition of a repetition")
        if max(len(found[3]), len(found[5])) > 3:
            raise _Refused("it has a repetition of more than 999 times")
        least = int(found[3] or 0)
        most = least if not found[4] else int(found[5]) if found[5] else None
        if most is not None and most < least:
            raise _Refused("it has a repetition whose bounds are the wrong way round")
        return least, most

    def _atom(self, depth: int) -> tuple[bool, int, int | None, int]:
        """Parse one atom. Return: is it one character, fewest and most characters, ways to match."""
        char = self._text[self._at]
        if char == "(":
            return self._group(depth)
        if char == "[":
            self._set()
        elif char == "\\":
            return self._escape()
        elif char in "^$":
            self._at += 1
            return False, 0, 0, 1
        elif char in "*+?":
            raise _Refused(f"{char!r} repeats nothing")
        else:
            self._at += 1
        return True, 1, 1, 1

    def _escape(self) -> tuple[bool, int, int | None, int]:
        for known in (_PROPERTY, _CODE):
            found = known.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                return True, 1, 1, 1
        char = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if char in _ANCHORS and char:
            return False, 0, 0, 1
        if char in _SIMPLE or (char and not char.isalnum()):
            return True, 1, 1, 1
        raise _Refused(f"it has '\\{char}', which is not known here")

    def _set(self) -> None:
        """Skip a character class, which always matches one character."""
        depth, first = 0, False
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "\\":
                self._at += 1
            elif char == "[":
                depth += 1
                self._at += self._text[self._at + 1 : self._at + 2] == "^"
                first = True
                self._at += 1
                continue
            elif char == "]" and not first:
                depth -= 1
                if depth == 0:
                    self._at += 1
                    return
            first = False
            self._at += 1
        raise _Refused("a set of characters does not end")

    def _group(self, depth: int) -> tuple[bool, int, int | None, int]:
        look = next((head for head in _LOOKS if self._text.startswith(head, self._at)), None)
        head = look or next((head for head in _GROUPS if self._text.startswith(head, self._at)), "(")
        self._at += len(head)
        if self._text.startswith("?", self._at):
            raise _Refused("it has a group of a kind that is not known here")
        inner = self.alternatives(depth + 1)
        self._at += 1
        ways = sum(_ways(one) for one in inner)
        if not all(part.bounded for one in inner for part in one.parts):
            return False, min(one.shortest for one in inner), None, ways
        if look is not None:
            return False, 0, 0, ways
        shortest = min(one.shortest for one in inner)
        longest = max(sum((part.longest or 0) * (part.most or 0) for part in one.parts) for one in inner)
        return (shortest, longest, ways) == (1, 1, 1), shortest, longest, ways


def _ways(alternative: _Alternative) -> int:
    ways = 1
    for part in alternative.parts:
        most = part.most or 0
        ways = min(ways * (most - part.least + 1) * part.choices ** min(most, 16), _MAX_CHOICES + 1)
    return ways
