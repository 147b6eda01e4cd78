"""Decides which parts of a grammar become terminals of the lexer.

The lexer always takes the longest match of all allowed terminals. Large terminals are fast, but a text is lost if a
shorter match would have been right. A terminal is safe if no text of it, followed by a possible next character,
begins a longer text of a terminal that is allowed at the same position. Unsafe parts are split into smaller ones, in
the end into single characters, which are always safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hivellm_ort.grammar.analysis import holds, is_empty_leaf
from hivellm_ort.grammar.fragments import Fragment, Fragments, bits, compared, literal, repeated
from hivellm_ort.grammar.syntax import (
    ROOT,
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    TokenReference,
    fold,
    names_in,
    parts_of,
)

__all__ = ["Terminals", "choose_terminals"]

# Beyond these all terminals are single characters: each two terminals, and each two of their positions, are compared.
_MAX_RULES = 1_000
_MAX_TERMINALS = 400
_MAX_COMPARISONS = 1_000_000
_MAX_ROUNDS = 40
_PIECE = 64  # characters of a literal that are tried together


@dataclass(frozen=True, slots=True)
class Terminals:
    """A grammar over terminals.

    Attributes:
        rules: The rules that `root` needs. A reference to a name in `regexes` is a terminal.
        regexes: The regex of each terminal. Their names differ from rule names.
    """

    rules: Mapping[str, Node]
    regexes: Mapping[str, str]


def choose_terminals(rules: Mapping[str, Node], *, exact: bool = True) -> Terminals:
    """Choose the largest terminals that keep the language.

    Args:
        rules: Rules from `normalise`.
        exact: False keeps only the texts in which terminals do not run into each other, if a blank or the end of a
            repetition can separate them.
    """
    fragments = Fragments(rules)
    pairs = _Pairs()
    broken: set[str] = set()
    for _ in range(_MAX_ROUNDS if len(rules) <= _MAX_RULES else 0):
        plan = _Plan(rules, fragments, broken)
        if len(plan.automata) > _MAX_TERMINALS:
            break
        unsafe = _unsafe(plan, pairs, exact=exact)
        if pairs.work > _MAX_COMPARISONS:
            break
        if not unsafe:
            return plan.result()
        broken |= unsafe
    return _Plan(rules, fragments, None).result()


class _Plan:
    """The rules with terminals for all regular parts that are not split.

    Attributes:
        rules: The rules that `root` needs, with references to terminals.
        automata: The automaton of each terminal.
        optional: The terminals `x+` that stand for `x*`. Next to a terminal of the same regex they are not needed.
    """

    def __init__(self, rules: Mapping[str, Node], fragments: Fragments, broken: set[str] | None) -> None:
        self.fragments = fragments
        self.broken = broken  # regexes, or None to break everything
        self.names: dict[tuple[str, bool], str] = {}  # by regex, and whether it is optional
        self.automata: dict[str, Fragment] = {}
        self.optional: set[str] = set()
        self.rules: dict[str, Node] = {}
        todo = [ROOT]
        while todo:
            name = todo.pop()
            if name not in self.rules:
                self.rules[name] = fold(rules[name], self.planned, whole=self.whole)
                todo.extend(used for used in names_in(self.rules[name]) if used in rules)

    def result(self) -> Terminals:
        """Return the plan's rules and regexes."""
        return Terminals(self.rules, {name: automaton.regex for name, automaton in self.automata.items()})

    def loop(self, node: Node) -> Fragment | None:
        """Return the automaton of `x+` for a node `x*`, if it may be a terminal."""
        if not isinstance(node, Repeat) or (node.min, node.max) != (0, None):
            return None
        item = self.fragments.of(node.item)
        made = repeated(item, 1, None) if item and not item.nullable else None
        return made if made and self.allowed(made) else None

    def allowed(self, fragment: Fragment | None) -> bool:
        """Return whether a regular part may be a terminal."""
        if fragment is None or fragment.nullable or fragment.has_optional_blank:
            return False
        return self.broken is not None and fragment.regex not in self.broken

    def whole(self, node: Node) -> bool:
        """Return whether the whole node becomes a terminal."""
        if isinstance(node, Reference):
            return True
        return self.allowed(self.fragments.of(node)) or self.loop(node) is not None

    def planned(self, node: Node, parts: list[Node]) -> Node:
        """Return the planned node, given its planned parts."""
        if isinstance(node, Reference | TokenReference):
            return node
        fragment = self.fragments.of(node)
        if fragment and (self.allowed(fragment) or isinstance(node, CharacterClass)):
            return self.terminal(fragment)
        if loop := self.loop(node):
            terminal = self.terminal(loop, optional=True)
            self.optional.add(terminal.name)
            return Repeat(terminal, 0, 1)
        match node:
            case Literal(text):
                return Sequence(tuple(self.pieces(text)))
            case Sequence():
                return Sequence(tuple(parts))
            case Choice():
                return Choice(tuple(parts))
            case Repeat(_, least, most):
                return Repeat(parts[0], least, most)
            case _:
                raise AssertionError(f"a class has an automaton: {node}")

    def pieces(self, text: str) -> Iterator[Node]:
        """Yield the terminals of a text that is not a terminal itself."""
        for start in range(0, len(text), _PIECE):
            part = literal(text[start : start + _PIECE])
            whole = part if len(text) > _PIECE and self.allowed(part) else None
            for piece in [whole] if whole else map(literal, text[start : start + _PIECE]):
                if piece:
                    yield self.terminal(piece)

    def terminal(self, fragment: Fragment, *, optional: bool = False) -> Reference:
        """Return the reference to the terminal of an automaton."""
        name = self.names.setdefault((fragment.regex, optional), f"%{len(self.names)}")
        self.automata[name] = fragment
        return Reference(name)


class _Pairs:
    """Cached comparisons of pairs of terminals.

    Attributes:
        work: Number of compared positions. Beyond the limit nothing is compared, and the results are invalid.
    """

    def __init__(self) -> None:
        self.work = 0
        self.known: dict[tuple[str, str], tuple[bool, int]] = {}

    def compare(self, one: Fragment, other: Fragment) -> tuple[bool, int]:
        """Return the cached result of `compared`."""
        if not one.starts & other.starts or self.work > _MAX_COMPARISONS:
            return False, 0
        key = (one.regex, other.regex)
        if key not in self.known:
            self.work += len(one.leads) * len(other.leads)
            self.known[key] = compared(one, other)
        return self.known[key]


def _unsafe(plan: _Plan, pairs: _Pairs, *, exact: bool) -> set[str]:
    """Return the regexes of the terminals that can hide the end of another terminal or of themselves."""
    neighbours = _Neighbours(plan, pairs, exact=True)
    together = neighbours.together()
    if not exact:
        neighbours = _Neighbours(plan, pairs, exact=False)
    automata = list(plan.automata.values())
    firsts = [automaton.starts for automaton in automata]
    alike: dict[str, int] = {}  # terminals with the same regex
    for number, automaton in enumerate(automata):
        alike[automaton.regex] = alike.get(automaton.regex, 0) | 1 << number
    optional = sum(1 << number for number, name in enumerate(plan.automata) if name in plan.optional)
    found: set[str] = set()
    for number, automaton in enumerate(automata):
        after = neighbours.after[number]
        twins = alike[automaton.regex]
        # Of two in a row the optional one can be left out: the other one matches the text of both.
        own = after & ~(twins if optional >> number & 1 else twins & optional)
        bytes_after, own_bytes_after = (_union(firsts, numbers) for numbers in (after, own))
        for other in bits(together[number] & ~(1 << neighbours.edge)):
            lost = pairs.compare(automaton, automata[other])[1]
            if lost & (own_bytes_after if twins >> other & 1 else bytes_after):
                found.add(automata[other].regex)
    return found


def _union(sets: list[int], numbers: int) -> int:
    """Return the union of the numbered sets."""
    whole = 0
    for number in bits(numbers):
        if number < len(sets):
            whole |= sets[number]
    return whole


class _Neighbours:
    """Which terminals can come next, and which can be allowed at the same position.

    Sets of terminals are bit sets in integers. One more bit stands for the beginning and for every token.

    Args:
        plan: The rules over terminals.
        pairs: How terminals compare.
        exact: False leaves out what can be avoided: skipped blanks, and further repetitions.

    Attributes:
        after: For each terminal those that can follow directly.
    """

    def __init__(self, plan: _Plan, pairs: _Pairs, *, exact: bool) -> None:
        self.pairs = pairs
        self.exact = exact
        self.automata = list(plan.automata.values())
        self.numbers = {name: number for number, name in enumerate(plan.automata)}
        self.blanks = {name for name in plan.optional if plan.automata[name].is_blank()}
        self.edge = len(self.automata)
        self.nullable = holds(plan.rules, is_empty_leaf, optional=self._optional)
        self.first: dict[str, int] = dict.fromkeys(plan.rules, 0)
        self.follow: dict[str, int] = dict.fromkeys(plan.rules, 0)
        self.after = [0] * (self.edge + 1)
        self.starts: dict[
            int, tuple[int, bool]
        ] = {}  # of each node: its first terminals, and if it can be empty
        users: dict[str, list[str]] = {name: [] for name in plan.rules}
        for name, node in plan.rules.items():
            for used in names_in(node):
                if used in users:
                    users[used].append(name)
        todo = dict.fromkeys(reversed(plan.rules))
        while todo:
            name = next(iter(todo))
            del todo[name]
            first, _ = fold(plan.rules[name], self._start)
            if first != self.first[name]:
                self.first[name] = first
                todo |= dict.fromkeys(users[name])
        self.after[self.edge] = self.first[ROOT]
        todo = dict.fromkeys(plan.rules)
        while todo:
            name = next(iter(todo))
            del todo[name]
            todo |= dict.fromkeys(self._spread(plan.rules[name], self.follow[name]))

    def _optional(self, node: Repeat) -> bool:
        """Return whether a repetition may be left out."""
        blank = isinstance(node.item, Reference) and node.item.name in self.blanks
        return node.min == 0 and (self.exact or not blank)

    def _start(self, node: Node, parts: list[tuple[int, bool]]) -> tuple[int, bool]:
        """Return the first terminals of a node, and whether it can be empty."""
        first, empty = 0, False
        match node:
            case Reference(name) if name in self.numbers:
                first = 1 << self.numbers[name]
            case Reference(name):
                first, empty = self.first[name], name in self.nullable
            case TokenReference():
                first = 1 << self.edge
            case Sequence():
                empty = True
                for part, nullable in parts:
                    first |= part if empty else 0
                    empty = empty and nullable
            case _:
                for part, nullable in parts:
                    first |= part
                    empty = empty or nullable
                empty = empty or (isinstance(node, Repeat) and self._optional(node))
        self.starts[id(node)] = (first, empty)
        return first, empty

    def _spread(self, node: Node, follow: int) -> Iterator[str]:
        """Record what follows each part of a node. Yield the rules for which that is new."""
        todo = [(node, follow)]
        while todo:
            current, then = todo.pop()
            match current:
                case Reference(name) if name in self.numbers:
                    self.after[self.numbers[name]] |= then
                case Reference(name):
                    if then & ~self.follow[name]:
                        self.follow[name] |= then
                        yield name
                case TokenReference():
                    self.after[self.edge] |= then
                case Sequence(items):
                    for item in reversed(items):
                        todo.append((item, then))
                        first, empty = self.starts[id(item)]
                        then = first | (then if empty else 0)
                case Repeat(item, least, most):
                    once = most == 1 or (least < 2 and not self.exact)
                    todo.append((item, then if once else then | self.starts[id(item)][0]))
                case _:
                    todo.extend((part, then) for part in parts_of(current))

    def together(self) -> list[int]:
        """Return for each terminal those that can be allowed at the same position."""
        alike = [1 << number for number in range(self.edge + 1)]  # those that can match the same text there
        together = [0] * (self.edge + 1)
        todo = dict.fromkeys(range(self.edge + 1))
        while todo:
            number = next(iter(todo))
            del todo[number]
            allowed = _union(self.after, alike[number])
            for one in bits(self.after[number]):
                new = allowed & ~together[one]
                if not new:
                    continue
                together[one] |= new
                for other in bits(new & ~(1 << self.edge)) if one < self.edge else ():
                    if other != one and self.pairs.compare(self.automata[one], self.automata[other])[0]:
                        alike[one] |= 1 << other
                        todo[one] = None
        return together
