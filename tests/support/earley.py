"""Reads GBNF and recognises text with Earley's algorithm, independently of the runtime's grammar engine.

The reader takes the notation of llama.cpp: ``name ::= alternatives``, literals, character classes, ``.``, groups,
``? * +`` and ``{m,n}``, comments, and line breaks after ``::=``, after ``|`` and inside groups.
Underscores in rule names and ``{,n}`` are taken too, because published grammars have them.
The recogniser is made for clarity: it works character by character and builds no tree.

Example:
    >>> read('root ::= "a"+ [^a-y]?').accepts("aaz")
    True
"""

from collections import deque
from dataclasses import dataclass
from itertools import count

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX = {"x": 2, "u": 4, "U": 8}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


class GrammarError(ValueError):
    """The text is not a usable grammar; the message names the line."""


@dataclass(frozen=True)
class Chars:
    """A set of characters: inclusive ranges, or all characters outside them."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def __contains__(self, char: str) -> bool:
        """Say whether the character is in the set."""
        return any(low <= char <= high for low, high in self.ranges) != self.negated


Symbol = str | Chars
Rules = dict[str, list[tuple[Symbol, ...]]]


def read(text: str, *, leading_bars: bool = False) -> "Grammar":
    """Return the grammar that the GBNF text defines.

    Args:
        text: The grammar; lines may end in LF, CRLF or CR.
        leading_bars: Whether a line that begins with ``|`` goes on with the rule, which llama.cpp does not take.

    Raises:
        GrammarError: The text breaks the notation, or a rule is missing or defined twice.
    """
    return _Reader(
        text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), leading_bars
    ).grammar()


class _Reader:
    """A recursive-descent reader that turns GBNF into plain productions."""

    def __init__(self, text: str, leading_bars: bool) -> None:
        self.text = text
        self.leading_bars = leading_bars
        self.at = 0
        self.rules: Rules = {}
        self.loops: set[str] = set()
        self.numbers = count(1)

    def grammar(self) -> "Grammar":
        """Read all rules and check that every name is defined."""
        self.skip(lines=True)
        while self.at < len(self.text):
            name = self.name()
            self.skip(lines=False)
            self.expect("::=")
            if name in self.rules:
                raise self.error(f"rule {name!r} is defined twice")
            self.rules[name] = []
            self.skip(lines=True)
            self.rules[name] = self.alternatives(name, nested=False)
            if self.peek() not in ("", "\n"):
                raise self.error(f"unexpected {self.peek()!r}")
            self.skip(lines=True)
        used = {s for bodies in self.rules.values() for body in bodies for s in body if isinstance(s, str)}
        missing = (used | {"root"}) - set(self.rules)
        if missing:
            raise GrammarError(f"undefined rules: {', '.join(sorted(missing))}")
        return Grammar(self.rules, self.loops)

    def error(self, message: str) -> GrammarError:
        """Make an error that names the line reached."""
        return GrammarError(f"line {self.text.count(chr(10), 0, self.at) + 1}: {message}")

    def peek(self) -> str:
        """Return the next character, or nothing at the end."""
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        """Return the next character and step over it."""
        char = self.peek()
        if not char:
            raise self.error("the grammar ends too early")
        self.at += 1
        return char

    def expect(self, word: str) -> None:
        """Step over the word, which has to come next."""
        if not self.text.startswith(word, self.at):
            raise self.error(f"expected {word!r}")
        self.at += len(word)

    def skip(self, *, lines: bool) -> None:
        """Step over blanks and comments, and over line breaks where they may stand."""
        while (char := self.peek()) and (char in " \t#" or (lines and char == "\n")):
            if char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                self.at += 1

    def name(self) -> str:
        """Read a rule name."""
        start = self.at
        while self.peek() and self.peek() in _NAME:
            self.at += 1
        if start == self.at:
            raise self.error("expected a rule name")
        return self.text[start : self.at]

    def fresh(self, owner: str) -> str:
        """Return an unused name for a part of the owner's rule."""
        return f"{owner.split('#')[0]}#{next(self.numbers)}"

    def alternatives(self, owner: str, *, nested: bool) -> list[tuple[Symbol, ...]]:
        """Read sequences separated by bars."""
        found = [self.sequence(owner, nested=nested)]
        while self.bar():
            self.skip(lines=True)
            found.append(self.sequence(owner, nested=nested))
        return found

    def bar(self) -> bool:
        """Step over a bar, and say whether there was one."""
        start = self.at
        self.skip(lines=self.leading_bars)
        if self.peek() == "|":
            self.at += 1
            return True
        self.at = start
        return False

    def sequence(self, owner: str, *, nested: bool) -> tuple[Symbol, ...]:
        """Read items up to a bar, the end of the group or the end of the rule."""
        done: list[Symbol] = []
        last: tuple[Symbol, ...] | None = None
        while char := self.peek():
            if char in "?*+{":
                if last is None:
                    raise self.error(f"nothing before {char!r} to repeat")
                last = self.repeated(last, owner)
            elif char == '"':
                done += last or ()
                last = self.literal()
            elif char == "[":
                done += last or ()
                last = (self.char_class(),)
            elif char == ".":
                done += last or ()
                last = (Chars((), negated=True),)
                self.at += 1
            elif char == "(":
                done += last or ()
                last = self.group(owner)
            elif char in _NAME:
                done += last or ()
                last = (self.name(),)
            else:
                break
            self.skip(lines=nested)
        return (*done, *(last or ()))

    def group(self, owner: str) -> tuple[Symbol, ...]:
        """Read a group in parentheses."""
        self.expect("(")
        self.skip(lines=True)
        name = self.fresh(owner)
        self.rules[name] = self.alternatives(owner, nested=True)
        self.expect(")")
        return (name,)

    def literal(self) -> tuple[Symbol, ...]:
        """Read a quoted literal as one set for each character."""
        self.expect('"')
        chars: list[Symbol] = []
        while self.peek() != '"':
            char = self.char()
            chars.append(Chars(((char, char),)))
        self.expect('"')
        return tuple(chars)

    def char_class(self) -> Chars:
        """Read a character class."""
        self.expect("[")
        negated = self.peek() == "^"
        self.at += negated
        ranges = []
        while self.peek() != "]":
            low = high = self.char()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self.char()
            ranges.append((low, high))
        self.expect("]")
        return Chars(tuple(ranges), negated)

    def char(self) -> str:
        """Read one character of a literal or class, escaped or not."""
        char = self.take()
        if char != "\\":
            return char
        kind = self.take()
        if kind in _HEX:
            digits = self.text[self.at : self.at + _HEX[kind]]
            self.at += _HEX[kind]
            try:
                return chr(int(digits, 16))
            except (ValueError, OverflowError):
                raise self.error(f"bad escape \\{kind}{digits}") from None
        if kind not in _ESCAPES:
            raise self.error(f"unknown escape \\{kind}")
        return _ESCAPES[kind]

    def repeated(self, body: tuple[Symbol, ...], owner: str) -> tuple[Symbol, ...]:
        """Read the repetition that follows and return the body repeated so."""
        mark = self.take()
        least, most = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(mark) or self.bounds()
        out = body * least
        if most is None:
            loop = self.fresh(owner)
            self.loops.add(loop)
            self.rules[loop] = [(), (loop, *body)]  # left recursion: linear for an Earley recogniser
            return (*out, loop)
        rest: tuple[Symbol, ...] = ()
        for _ in range(most - least):
            option = self.fresh(owner)
            self.rules[option] = [(), (*body, *rest)]
            rest = (option,)
        return (*out, *rest)

    def bounds(self) -> tuple[int, int | None]:
        """Read what follows the brace of ``{m}``, ``{m,}``, ``{m,n}`` or ``{,n}``."""
        inside, brace, _ = self.text[self.at :].partition("}")
        low, comma, high = (part.strip() for part in inside.partition(","))
        if not brace or not (low or high) or not (low + high).isdecimal():
            raise self.error("a repetition is {m}, {m,} or {m,n}")
        self.at += len(inside) + 1
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise self.error("a repetition ends below its start")
        return least, most


class Grammar:
    """A context-free grammar over characters, whose start symbol is ``root``.

    Attributes:
        rules: The productions of each name; names with ``#`` stand for groups and repetitions.
    """

    def __init__(self, rules: Rules, loops: set[str]) -> None:
        self.rules = rules
        self._loops = loops
        self._nullable = self._find_nullable()
        # All productions lie in one list, each closed by its own name's end mark, so that a position in a
        # production is one number and stepping over a symbol adds one to it.
        self._symbols: list[Symbol | None] = []
        self._owner: list[str] = []
        self._starts: dict[str, list[int]] = {}
        for name, bodies in rules.items():
            self._starts[name] = []
            for body in bodies:
                self._starts[name].append(len(self._symbols))
                self._symbols += [*body, None]
                self._owner += [name] * (len(body) + 1)

    def accepts(self, text: str) -> bool:
        """Say whether the whole text is in the language."""
        return self._run(text)[1]

    def viable(self, text: str) -> int:
        """Return how many leading characters of the text begin some text of the language."""
        return self._run(text)[0]

    def left_recursive(self) -> list[str]:
        """Return the written rules that can begin with themselves, which llama.cpp refuses.

        A repetition counts as the right recursion that llama.cpp makes of it, so ``x*`` is in the way only where
        ``x`` can be empty.
        """
        first: dict[str, set[str]] = {name: set() for name in self.rules}
        for name, bodies in self.rules.items():
            for body in bodies:
                if name in self._loops and body:
                    body = (*body[1:], name)  # the loop as llama.cpp writes it
                for symbol in body:
                    if isinstance(symbol, Chars):
                        break
                    first[name].add(symbol)
                    if symbol not in self._nullable:
                        break
        return sorted({name.split("#")[0] for name in self.rules if name in self._closure(first, name)})

    def unreachable(self) -> list[str]:
        """Return the rules that ``root`` never uses."""
        uses = {
            name: {s for body in bodies for s in body if isinstance(s, str)}
            for name, bodies in self.rules.items()
        }
        return sorted(set(self.rules) - self._closure(uses, "root") - {"root"})

    @staticmethod
    def _closure(edges: dict[str, set[str]], start: str) -> set[str]:
        """Return the names that can be reached from the start in one step or more."""
        seen: set[str] = set()
        queue = deque(edges[start])
        while queue:
            name = queue.popleft()
            if name not in seen:
                seen.add(name)
                queue.extend(edges[name])
        return seen

    def _find_nullable(self) -> set[str]:
        """Return the names that derive the empty text."""
        nullable: set[str] = set()
        before = -1
        while before != len(nullable):
            before = len(nullable)
            nullable |= {
                name
                for name, bodies in self.rules.items()
                if any(all(symbol in nullable for symbol in body) for body in bodies)
            }
        return nullable

    def _run(self, text: str) -> tuple[int, bool]:
        """Return the length of the longest viable prefix and whether the text is accepted."""
        waiting: list[dict[str, list[tuple[int, int]]]] = []  # per column: items before each name
        items = [(start, 0) for start in self._starts["root"]]
        for at in range(len(text) + 1):
            char = text[at : at + 1]
            column: dict[str, list[tuple[int, int]]] = {}
            waiting.append(column)
            seen = set(items)
            ahead: list[tuple[int, int]] = []

            def add(item: tuple[int, int], seen: set[tuple[int, int]] = seen) -> None:
                if item not in seen:
                    seen.add(item)
                    items.append(item)  # noqa: B023 - called in this round only

            for place, origin in items:  # grows while it is walked
                symbol = self._symbols[place]
                if symbol is None:
                    for before, start in waiting[origin].get(self._owner[place], ()):
                        add((before + 1, start))
                elif isinstance(symbol, Chars):
                    if char and char in symbol:
                        ahead.append((place + 1, origin))
                else:
                    if symbol in column:
                        column[symbol].append((place, origin))
                    else:
                        column[symbol] = [(place, origin)]
                        for start in self._starts[symbol]:
                            add((start, at))
                    if symbol in self._nullable:
                        add((place + 1, origin))
            if not char:
                return at, any(
                    origin == 0 and self._symbols[place] is None and self._owner[place] == "root"
                    for place, origin in items
                )
            if not ahead:
                return at, False
            items = ahead
        raise AssertionError("the last column returns")
