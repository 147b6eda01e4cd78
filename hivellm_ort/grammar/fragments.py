"""Regular parts of a grammar, as regexes and as automata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from hivellm_ort.grammar.syntax import (
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    fold,
    names_in,
)

__all__ = ["Fragment", "Fragments", "bits", "compared", "literal", "repeated"]

_MAX_POSITIONS = 256  # positions of an automaton
_BLANKS = sum(1 << ord(char) for char in " \t\r\n")
_MAX_STEPS = 20_000  # steps of one comparison
_MAX_REGEX = 20_000  # characters
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ,:;<>=!@%'\"")


@dataclass(frozen=True)
class Fragment:
    """A regular language as a Glushkov automaton, with one position for each character of its regex.

    Sets of positions and sets of bytes are bit sets in integers.

    Attributes:
        regex: The language in the syntax of Rust's regex crate.
        nullable: Whether it contains the empty text.
        first: The positions at which a text can begin.
        last: The positions at which a text can end.
        leads: For each position the first UTF-8 bytes of its characters.
        follow: For each position the positions that can come next.
        atomic: Whether the regex needs no parentheses before a repetition.
    """

    regex: str
    nullable: bool
    first: int
    last: int
    leads: tuple[int, ...]
    follow: tuple[int, ...]
    atomic: bool = False

    @cached_property
    def starts(self) -> int:
        """The possible first bytes of a text."""
        return _leads_of(self, self.first)

    def is_blank(self) -> bool:
        """Return whether all texts of the language are whitespace."""
        return not _leads_of(self, (1 << len(self.leads)) - 1) & ~_BLANKS

    @cached_property
    def has_optional_blank(self) -> bool:
        """Whether a text can begin or end with an optional blank."""
        for ends in (self.first, self.last):
            kinds = {not self.leads[position] & ~_BLANKS for position in bits(ends)}
            if len(kinds) == 2:
                return True
        return False


_EMPTY = Fragment("", True, 0, 0, (), ())


class Fragments:
    """The automata of all regular parts of a grammar.

    Args:
        nodes: The rules.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._rules: dict[str, Fragment] = {}
        self._nodes: dict[int, Fragment | None] = {}  # by the node's identity
        self._kept = nodes  # keeps the nodes alive, because their ids are keys
        waiting = {name: set(names_in(node)) for name, node in nodes.items()}
        users: dict[str, list[str]] = {name: [] for name in nodes}
        for name, used in waiting.items():
            for other in used:
                users[other].append(name)
        ready = [name for name, used in waiting.items() if not used]
        while ready:
            name = ready.pop()
            fragment = fold(nodes[name], self._visit)
            if fragment is not None:
                self._rules[name] = fragment
            for user in users[name]:
                waiting[user].discard(name)
                if not waiting[user]:
                    ready.append(user)
        for name, used in waiting.items():
            if used:
                fold(nodes[name], self._visit)

    def of(self, node: Node) -> Fragment | None:
        """Return the automaton of a node, or None if it is not regular or too large."""
        return self._nodes[id(node)]

    def _visit(self, node: Node, parts: list[Fragment | None]) -> Fragment | None:
        """Return a node's automaton and cache it."""
        made = self._nodes[id(node)] = self._made(
            node, [part for part in parts if part is not None], len(parts)
        )
        return made

    def _made(self, node: Node, parts: list[Fragment], count: int) -> Fragment | None:
        """Return the automaton of a node with `count` parts, given the regular ones."""
        if len(parts) < count:
            return None
        match node:
            case Literal(text):
                return literal(text) if len(text) <= _MAX_POSITIONS else None
            case CharacterClass():
                return _single(node.spans())
            case Reference(name):
                return self._rules.get(name)
            case Sequence():
                return _joined(parts)
            case Choice():
                return _either(parts)
            case Repeat(_, least, most):
                return repeated(parts[0], least, most)
            case _:
                return None


def literal(text: str) -> Fragment | None:
    """Return the automaton of a text."""
    return _joined([_single(((ord(char), ord(char)),)) for char in text])


def compared(one: Fragment, other: Fragment) -> tuple[bool, int]:
    """Compare two languages for a lexer that takes the longest match.

    Characters with the same first UTF-8 byte count as equal, and a long comparison returns the largest result. So the
    result is never too small.

    Returns:
        Whether some text is in both, and the bytes that can follow a text of the first inside a text of the second.
        Before such a byte the lexer would miss the end of the first text.
    """
    if len(one.leads) == len(other.leads) == 1 and not one.follow[0] | other.follow[0]:
        return bool(one.leads[0] & other.leads[0]), 0
    seen = [0] * len(one.leads)
    todo = [(one.first, other.first)]
    known = set(todo)
    both, bytes_after, steps = False, 0, 0
    while todo:
        mine, its = todo.pop()
        for p in bits(mine):
            steps += 1
            fresh = its & ~seen[p]
            seen[p] |= fresh
            for q in bits(fresh):
                if not one.leads[p] & other.leads[q]:
                    continue
                following = (one.follow[p], other.follow[q])
                if following not in known:
                    known.add(following)
                    todo.append(following)
                if one.last >> p & 1:
                    both = both or bool(other.last >> q & 1)
                    bytes_after |= _leads_of(other, other.follow[q])
        if steps > _MAX_STEPS:
            return True, (1 << 256) - 1
    return both, bytes_after


def _leads_of(fragment: Fragment, positions: int) -> int:
    """Return the first bytes at the positions."""
    found = 0
    for position in bits(positions):
        found |= fragment.leads[position]
    return found


@lru_cache(maxsize=4096)
def bits(number: int) -> tuple[int, ...]:
    """Return the indices of the set bits of a number."""
    places = []
    while number:
        low = number & -number
        places.append(low.bit_length() - 1)
        number ^= low
    return tuple(places)


def _single(spans: tuple[tuple[int, int], ...]) -> Fragment:
    """Return the automaton of one character."""
    leads = 0
    for low, high in spans:
        first, last = _lead_byte(low), _lead_byte(high)
        leads |= (1 << last + 1) - (1 << first)
    if len(spans) == 1 and spans[0][0] == spans[0][1]:
        regex = _escaped(spans[0][0])
    else:
        ranges = (_escaped(low) + (f"-{_escaped(high)}" if high > low else "") for low, high in spans)
        regex = f"[{''.join(ranges)}]"
    return Fragment(regex, False, 1, 1, (leads,), (0,), atomic=True)


def _lead_byte(code: int) -> int:
    """Return the first byte of a character in UTF-8."""
    if code < 0x80:
        return code
    if code < 0x800:
        return 0xC0 | code >> 6
    return 0xE0 | code >> 12 if code < 0x10000 else 0xF0 | code >> 18


def _escaped(code: int) -> str:
    """Return a character escaped for a regex, inside or outside a class."""
    return chr(code) if chr(code) in _PLAIN else f"\\x{{{code:X}}}"


def _shifted(parts: list[Fragment]) -> list[tuple[Fragment, int]]:
    """Return each automaton with the offset of its positions in the whole."""
    at = 0
    placed = []
    for part in parts:
        placed.append((part, at))
        at += len(part.leads)
    return placed


def _joined(parts: list[Fragment]) -> Fragment | None:
    """Return the concatenation of automata."""
    if len(parts) == 1:
        return parts[0]
    if sum(len(part.leads) for part in parts) > _MAX_POSITIONS:
        return None
    first, last, nullable = 0, 0, True
    leads: list[int] = []
    follow: list[int] = []
    for part, at in _shifted(parts):
        begin = part.first << at
        for position in bits(last):
            follow[position] |= begin
        leads += part.leads
        follow += [after << at for after in part.follow]
        first |= begin if nullable else 0
        last = part.last << at | (last if part.nullable else 0)
        nullable = nullable and part.nullable
    regex = "".join(part.regex for part in parts)
    if len(regex) > _MAX_REGEX:
        return None
    return Fragment(regex, nullable, first, last, tuple(leads), tuple(follow))


def _either(parts: list[Fragment]) -> Fragment | None:
    """Return the union of automata."""
    if not parts or sum(len(part.leads) for part in parts) > _MAX_POSITIONS:
        return None
    first, last = 0, 0
    leads: list[int] = []
    follow: list[int] = []
    for part, at in _shifted(parts):
        leads += part.leads
        follow += [after << at for after in part.follow]
        first |= part.first << at
        last |= part.last << at
    regex = "|".join(part.regex for part in parts)
    if len(regex) > _MAX_REGEX:
        return None
    nullable = any(part.nullable for part in parts)
    return Fragment(f"(?:{regex})", nullable, first, last, tuple(leads), tuple(follow), atomic=True)


def repeated(part: Fragment, least: int, most: int | None) -> Fragment | None:
    """Return the repetition of an automaton."""
    size = len(part.leads)
    copies = max(1, least if most is None else most)
    if size * copies > _MAX_POSITIONS:
        return None
    whole = _joined([part] * copies) if copies > 1 else part
    if whole is None or not size:
        return _EMPTY if not size else None
    last, follow = whole.last, list(whole.follow)
    first_of_last_copy = part.first << size * (copies - 1)
    if most is None:
        for position in bits(part.last << size * (copies - 1)):
            follow[position] |= first_of_last_copy
    else:
        for copy in range(max(least, 1), copies):
            last |= part.last << size * (copy - 1)
    mark = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
    if mark is None:
        mark = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
    item = part.regex if part.atomic else f"(?:{part.regex})"
    return Fragment(
        f"(?:{item}{mark})",
        part.nullable or least == 0,
        whole.first,
        last,
        whole.leads,
        tuple(follow),
        atomic=True,
    )
