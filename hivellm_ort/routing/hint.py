"""The condition `router_hint` of a manifest, such as `database=sql AND NOT (task=chart OR formality>0.7)`.

The grammar is in docs/routing.md. `NOT` binds tighter than `AND`, `AND` tighter than `OR`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hivellm_ort.errors import ManifestError
from hivellm_ort.printable import printable
from hivellm_ort.routing.candidates import Tags
from hivellm_ort.routing.words import MAX_SHOWN, spaced

__all__ = [
    "MAX_HINT_DEPTH",
    "MAX_HINT_LENGTH",
    "And",
    "Hint",
    "Not",
    "Or",
    "Term",
    "holds",
    "parse_hint",
    "terms",
]

MAX_HINT_LENGTH = 1000
"""Most characters of a hint."""

MAX_HINT_DEPTH = 32
"""Most parentheses and negations around one term."""

_ORDERS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<end>\Z)
      | (?P<mark>&&|\|\||!=|>=|<=|[()=:><!])
      | "(?P<quoted>[^"]*)"
      | (?P<word>(?:[^\s()=:<>!&|"]|&(?!&)|\|(?!\|))+)
    )""",
    re.VERBOSE,
)
_CONNECTIVES = {"and": "AND", "&&": "AND", "or": "OR", "||": "OR", "not": "NOT", "!": "NOT"}


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison, or a bare word.

    Attributes:
        key: The key, as written; None for a bare word.
        comparison: `=`, `>`, `>=`, `<` or `<=`.
        value: The value, as written; a number unless the comparison is `=`.
    """

    key: str | None
    comparison: str
    value: str

    def __str__(self) -> str:
        return printable(
            self.value if self.key is None else f"{self.key}{self.comparison}{self.value}", most=MAX_SHOWN
        )


@dataclass(frozen=True, slots=True)
class Not:
    """True if its operand is false."""

    operand: Hint


@dataclass(frozen=True, slots=True)
class And:
    """True if all operands are true."""

    operands: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True if any operand is true."""

    operands: tuple[Hint, ...]


Hint = Term | Not | And | Or


def parse_hint(text: str) -> Hint:
    """Parse a hint.

    Raises:
        ManifestError: It is malformed, longer than `MAX_HINT_LENGTH` or nested deeper than `MAX_HINT_DEPTH`.
            The message names the column, from 1.
    """
    if len(text) > MAX_HINT_LENGTH:
        raise _fault(f"longer than {MAX_HINT_LENGTH} characters; shorten it", MAX_HINT_LENGTH)
    return _Parser(text).hint()


def holds(hint: Hint, tags: Tags) -> bool:
    """Return whether a hint is true for the tags of a request. Unknown keys make a term false.

    Comparison ignores case and treats hyphens, underscores and spaces as equal.
    """
    match hint:
        case Term():
            return _term_holds(hint, tags)
        case Not(operand):
            return not holds(operand, tags)
        case And(operands):
            return all(holds(operand, tags) for operand in operands)
        case Or(operands):
            return any(holds(operand, tags) for operand in operands)


def terms(hint: Hint, *, positive: bool = True) -> Iterator[tuple[Term, bool]]:
    """Yield each term, and whether it counts for the expert: False under an odd number of negations."""
    match hint:
        case Term():
            yield hint, positive
        case Not(operand):
            yield from terms(operand, positive=not positive)
        case And(operands) | Or(operands):
            for operand in operands:
                yield from terms(operand, positive=positive)


def _term_holds(term: Term, tags: Tags) -> bool:
    if term.key is None:
        known = [value for values in tags.values() for value in values]
    else:
        key = _plain(term.key)
        known = [value for name, values in tags.items() if _plain(name) == key for value in values]
    if term.comparison == "=":
        wanted = _plain(term.value)
        return any(_plain(value) == wanted for value in known)
    order, bound = _ORDERS[term.comparison], float(term.value)
    return any(number is not None and order(number, bound) for number in map(_number, known))


def _plain(text: str) -> str:
    return " ".join(spaced(text).casefold().split())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _fault(what: str, position: int) -> ManifestError:
    return ManifestError(f"router_hint, column {position + 1}: {what}", pointer="/routing/router_hint")


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is `AND`, `OR`, `NOT`, `word`, `end` or a mark such as `(`."""

    kind: str
    text: str
    position: int


class _Parser:
    """Recursive descent over the tokens of one hint."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._token = next(self._tokens)
        self._depth = 0

    def hint(self) -> Hint:
        hint = self._or()
        if self._token.kind != "end":
            raise self._unexpected("AND, OR or the end")
        return hint

    def _or(self) -> Hint:
        operands = [self._and()]
        while self._take("OR"):
            operands.append(self._and())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self) -> Hint:
        operands = [self._not()]
        while self._take("AND"):
            operands.append(self._not())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _not(self) -> Hint:
        if self._token.kind not in ("NOT", "("):
            return self._term()
        self._depth += 1
        if self._depth > MAX_HINT_DEPTH:
            raise _fault(f"nested deeper than {MAX_HINT_DEPTH} levels; simplify it", self._token.position)
        if self._take("NOT"):
            hint: Hint = Not(self._not())
        else:
            self._next()
            hint = self._or()
            if not self._take(")"):
                raise self._unexpected("AND, OR or a closing parenthesis")
        self._depth -= 1
        return hint

    def _term(self) -> Hint:
        word = self._word("a term, NOT or an opening parenthesis")
        comparison = self._token.kind
        if comparison in ("=", ":", "!="):
            self._next()
            term = Term(word.text, "=", self._word("a value").text)
            return Not(term) if comparison == "!=" else term
        if comparison in _ORDERS:
            self._next()
            number = self._word("a number")
            if _number(number.text) is None:
                raise _fault(f"{comparison!r} compares with a number, such as 0.7", number.position)
            return Term(word.text, comparison, number.text)
        return Term(None, "=", word.text)

    def _word(self, expected: str) -> _Token:
        token = self._token
        if token.kind != "word":
            raise self._unexpected(expected)
        self._next()
        return token

    def _take(self, kind: str) -> bool:
        if self._token.kind != kind:
            return False
        self._next()
        return True

    def _next(self) -> None:
        self._token = next(self._tokens)

    def _unexpected(self, expected: str) -> ManifestError:
        found = "the end" if self._token.kind == "end" else ascii(self._token.text)
        return _fault(f"expected {expected}, found {found}", self._token.position)


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while True:
        found = _TOKEN.match(text, position)
        if found is None:
            start = len(text) - len(text[position:].lstrip())
            raise _fault(f"character {text[start]!a} cannot stand here", start)
        kind = found.lastgroup or "end"
        content, start, position = found[kind], found.start(kind), found.end()
        if kind == "mark":
            yield _Token(_CONNECTIVES.get(content, content), content, start)
        elif kind == "word":
            yield _Token(_CONNECTIVES.get(content.casefold(), "word"), content, start)
        elif kind == "quoted":
            yield _Token("word", content, start - 1)
        else:
            yield _Token("end", "", start)
            return
