"""Parses GBNF, the grammar notation of llama.cpp.

Unlike llama.cpp it accepts `_` in rule names, `{,n}`, left recursion, and lines that begin with `|`, because
published grammars use them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NoReturn

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.limits import DEFAULT, GrammarLimits
from hivellm_ort.grammar.syntax import (
    EMPTY,
    LAST_CODE_POINT,
    ROOT,
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    TokenReference,
)

__all__ = ["parse_gbnf"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANKS_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_LINE_END = re.compile(r"\r\n|\n|\r")
_PLAIN_LITERAL = re.compile(r'[^"\\\r\n]+')
_COUNT = re.compile(r"[0-9]+")
_TOKEN_TEXT = re.compile(r"<[^<>\s]+>")
_TOKEN_ID = re.compile(r"<\[([0-9]+)\]>")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_MARKS = {"?": (0, 1), "*": (0, None), "+": (1, None)}
_LARGEST_TOKEN_ID = (1 << 31) - 1


def parse_gbnf(text: str, *, limits: GrammarLimits = DEFAULT) -> Rules:
    r"""Parse a GBNF text.

    Args:
        text: The grammar. Lines end with LF, CRLF or CR. It may begin with a byte order mark.
        limits: Limits on its size.

    Returns:
        The rules as written. `root` exists, and every used rule is defined.

    Raises:
        GrammarError: The text has a syntax error or exceeds a limit. The message names line, column and rule.

    Example:
        >>> parse_gbnf('root ::= "a"+').nodes
        {'root': Repeat(item=Literal(text='a'), min=1, max=None)}
    """
    if len(text) > limits.max_bytes or len(text.encode("utf-8", "surrogatepass")) > limits.max_bytes:
        raise GrammarError(
            f"line 1, column 1: the grammar is longer than {limits.max_bytes} bytes (max_bytes); shorten it",
            line=1,
            column=1,
        )
    return _Reader(text, limits).rules()


class _Group:
    """An open group or rule body, as far as it has been parsed."""

    __slots__ = ("depth", "items", "options", "size", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.options: list[Node] = []
        self.items: list[Node] = []
        self.depth = 0  # repetitions stacked on the last item
        self.size = [0, 0]  # expanded items: of all but the last item, and of the last item

    def add(self, item: Node, size: int) -> None:
        """Append an item, with its number of items after expansion."""
        self.items.append(item)
        self.depth = 0
        self.size = [sum(self.size), size]

    def end_option(self) -> None:
        """Close the current alternative."""
        items = self.items
        if not items:
            self.size[0] += 1
        self.options.append(items[0] if len(items) == 1 else Sequence(tuple(items)) if items else EMPTY)
        self.items = []
        self.add_nothing()

    def add_nothing(self) -> None:
        """Clear the last item, so that no repetition can follow."""
        self.size = [sum(self.size), 0]
        self.depth = 0

    def node(self) -> Node:
        """Close the group and return its tree."""
        self.end_option()
        return self.options[0] if len(self.options) == 1 else Choice(tuple(self.options))


class _Reader:
    """Parses a text in one pass."""

    def __init__(self, text: str, limits: GrammarLimits) -> None:
        self.text = text
        self.limits = limits
        self.at = 1 if text.startswith("\ufeff") else 0
        self.rule = ""
        self.nodes: dict[str, Node] = {}
        self.lines: dict[str, int] = {}
        self.uses: dict[str, tuple[int, str]] = {}  # index of the first use of each rule, and the using rule
        self.expanded = 0
        self.line_starts = [self.at, *(found.end() for found in _LINE_END.finditer(text))]

    def rules(self) -> Rules:
        """Parse all rules and check that every name is defined."""
        self.skip(lines=True)
        while self.at < len(self.text):
            self.definition()
        for name, (at, rule) in self.uses.items():
            if name not in self.nodes:
                self.rule = rule
                self.fail(at, f"no rule {_shown(name)} is defined; define it or correct the name")
        if ROOT not in self.nodes:
            self.rule = ""
            self.fail(self.at, f"there is no rule {ROOT!r}; name the rule to begin with {ROOT!r}")
        return Rules(self.nodes, self.lines)

    def fail(self, at: int, message: str) -> NoReturn:
        """Raise an error that names line, column and rule."""
        line = bisect_right(self.line_starts, at)
        column = at - self.line_starts[line - 1] + 1
        rule = f", in rule {_shown(self.rule)}" if self.rule else ""
        raise GrammarError(f"line {line}, column {column}{rule}: {message}", line=line, column=column)

    def peek(self) -> str:
        """Return the next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def seen(self, at: int) -> str:
        """Return a description of the character at `at`, for messages."""
        return repr(self.text[at]) if at < len(self.text) else "the end of the grammar"

    def skip(self, *, lines: bool) -> None:
        """Skip blanks and comments, and line ends where they are allowed."""
        found = (_BLANKS_AND_LINES if lines else _BLANKS).match(self.text, self.at)
        self.at = found.end() if found else self.at

    def definition(self) -> None:
        """Parse one rule."""
        start, self.rule = self.at, ""
        found = _NAME.match(self.text, start)
        if not found:
            self.fail(start, f"expected the name of a rule, not {self.seen(start)}; rules are `name ::= ...`")
        name = self.rule = found.group()
        if name in self.nodes:
            self.fail(start, f"the rule is defined at line {self.lines[name]} too; join both with `|`")
        if len(self.nodes) >= self.limits.max_rules:
            self.fail(start, f"more than {self.limits.max_rules} rules (max_rules); use fewer")
        self.at = found.end()
        self.skip(lines=False)
        if not self.text.startswith("::=", self.at):
            self.fail(self.at, f"expected `::=` after the rule's name, not {self.seen(self.at)}")
        self.at += 3
        self.skip(lines=True)
        self.lines[name] = bisect_right(self.line_starts, start)
        self.nodes[name] = self.body()
        self.skip(lines=True)

    def body(self) -> Node:
        """Parse alternatives up to the end of the rule."""
        groups = [_Group(self.at)]
        while True:
            group, start, char = groups[-1], self.at, self.peek()
            if char == "|":
                self.at += 1
                group.end_option()
                self.skip(lines=True)
                continue
            if char == "(":
                if len(groups) > self.limits.max_depth:
                    self.fail(start, f"more than {self.limits.max_depth} groups in each other (max_depth)")
                self.at += 1
                groups.append(_Group(start))
                self.skip(lines=True)
                continue
            if char == ")" and len(groups) > 1:
                self.at += 1
                size = sum(group.size)
                node = groups.pop().node()
                groups[-1].add(node, size)
            elif char in ("?", "*", "+", "{") and char:
                self.repetition(group)
            elif not self.item(group):
                if self.next_line_continues():
                    continue
                break
            self.skip(lines=len(groups) > 1)
        if len(groups) > 1:
            if not char:
                self.fail(groups[-1].start, "the group has no end; close it with `)`")
            self.unexpected(start)
        if char and char not in "\r\n":
            self.unexpected(start)
        self.expanded += sum(group.size)
        if self.expanded > self.limits.max_expanded:
            self.too_large(group.start)
        return group.node()

    def unexpected(self, at: int) -> NoReturn:
        """Raise the error for an unexpected character."""
        cure = {
            ")": "there is no group to close",
            "]": "a class begins with `[`",
            "}": "a repetition begins with `{`",
            "'": 'literals stand in `"`',
        }.get(self.text[at], "write literals in quotes and each rule on its own line")
        if (found := _NAME.match(self.text, at)) and self.begins_rule(found.end()):
            cure = 'a rule begins inside of another; close the group, and write `""` for an empty alternative'
        self.fail(at, f"unexpected {self.seen(at)}; {cure}")

    def too_large(self, at: int) -> NoReturn:
        """Raise the error for too large nested repetitions."""
        self.fail(
            at, f"written out, the rules hold more than {self.limits.max_expanded} items (max_expanded)"
        )

    def next_line_continues(self) -> bool:
        """Skip line ends if the next line begins with `|`. Return whether it does."""
        if self.peek() not in ("\r", "\n"):
            return False
        found = _BLANKS_AND_LINES.match(self.text, self.at)
        if found and self.text.startswith("|", found.end()):
            self.at = found.end()
            return True
        return False

    def item(self, group: _Group) -> bool:
        """Parse a literal, class, token or reference. Return whether there is one."""
        start, char = self.at, self.peek()
        if char == '"':
            text = self.literal()
            group.add(Literal(text), len(text))
        elif char == "[":
            group.add(self.character_class(), 1)
        elif char == ".":
            self.at += 1
            group.add(CharacterClass((), negated=True), 1)
        elif char in ("<", "!") and char:
            group.add(self.token(), 1)
        elif (found := _NAME.match(self.text, start)) and not self.begins_rule(found.end()):
            self.at = found.end()
            self.uses.setdefault(found.group(), (start, self.rule))
            group.add(Reference(found.group()), 1)
        else:
            return False
        return True

    def begins_rule(self, at: int) -> bool:
        """Return whether a name and `::=` follow, so that a new rule begins."""
        found = _BLANKS.match(self.text, at)
        return bool(found and self.text.startswith("::=", found.end()))

    def literal(self) -> str:
        """Parse a literal in quotes."""
        start = self.at
        self.at += 1
        parts: list[str] = []
        while (char := self.peek()) != '"':
            if found := _PLAIN_LITERAL.match(self.text, self.at):
                self.at = found.end()
                parts.append(self.checked(found.group(), found.start()))
            elif char in ("", "\r", "\n"):
                self.fail(
                    start, 'the literal has no end; close it with `"` on its line, with `\\n` for a break'
                )
            else:
                parts.append(self.escape())
        self.at += 1
        return "".join(parts)

    def checked(self, text: str, at: int) -> str:
        """Return a part of the text after checking that it has only valid characters."""
        for offset, char in enumerate(text) if not text.isascii() else ():
            if "\ud800" <= char <= "\udfff":
                self.fail(at + offset, f"U+{ord(char):04X} is half of a surrogate pair, not a character")
        return text

    def escape(self) -> str:
        """Parse an escape."""
        start = self.at
        kind = self.text[start + 1 : start + 2]
        if kind in _ESCAPES:
            self.at += 2
            return _ESCAPES[kind]
        digits = _HEX_DIGITS.get(kind)
        if digits is None:
            self.fail(start, f"unknown escape \\{kind}; a backslash itself is written `\\\\`")
        written = self.text[start + 2 : start + 2 + digits]
        if not re.fullmatch(f"[0-9A-Fa-f]{{{digits}}}", written):
            self.fail(start, f"\\{kind} takes {digits} hexadecimal digits")
        code = int(written, 16)
        if code > LAST_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            self.fail(start, f"U+{code:04X} is not a character; use \\U with the code point itself")
        self.at += 2 + digits
        return chr(code)

    def member(self, start: int) -> int:
        """Parse one character of a class that began at `start`. Return its code point."""
        char = self.peek()
        if char in ("", "\r", "\n"):
            self.fail(start, "the class has no end; close it with `]` on its line, with `\\n` for a break")
        if char == "\\":
            return ord(self.escape())
        self.checked(char, self.at)
        self.at += 1
        return ord(char)

    def character_class(self) -> CharacterClass:
        """Parse a class in brackets."""
        start = self.at
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self.peek() != "]":
            at = self.at
            low = high = self.member(start)
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self.member(start)
            if high < low:
                self.fail(at, "the range ends before it begins; swap its ends")
            ranges.append((low, high))
        self.at += 1
        if not ranges:
            self.fail(start, "the class is empty; write `.` for any character and `\\]` for a bracket")
        node = CharacterClass(tuple(ranges), negated)
        if not node.spans():
            self.fail(start, "the class holds no character; leave one out of the negated ranges")
        return node

    def token(self) -> TokenReference:
        """Parse a token in angle brackets."""
        start = self.at
        negated = self.peek() == "!"
        self.at += negated
        if found := _TOKEN_ID.match(self.text, self.at):
            number = found.group(1)
            if len(number) > 10 or int(number) > _LARGEST_TOKEN_ID:
                self.fail(start, f"the token id is larger than {_LARGEST_TOKEN_ID}")
            self.at = found.end()
            return TokenReference(id=int(number), negated=negated)
        found = _TOKEN_TEXT.match(self.text, self.at)
        if not found or found.group().startswith("<["):
            self.fail(
                start,
                "a token is written `<text>` without blanks, or `<[id]>`; `!` before it means any other token",
            )
        self.at = found.end()
        return TokenReference(text=self.checked(found.group(), found.start()), negated=negated)

    def repetition(self, group: _Group) -> None:
        """Parse `?`, `*`, `+` or braces, and apply them to the last item."""
        start, char = self.at, self.peek()
        if not group.items:
            self.fail(start, f"there is nothing before {char!r} to repeat")
        if group.depth >= self.limits.max_depth:
            self.fail(start, f"more than {self.limits.max_depth} repetitions on one item (max_depth)")
        if char == "{":
            least, most = self.bounds()
        else:
            self.at += 1
            least, most = _MARKS[char]
        group.items[-1] = Repeat(group.items[-1], least, most)
        group.depth += 1
        group.size[1] *= max(least, most or 1)
        if group.size[1] > self.limits.max_expanded:
            self.too_large(start)

    def bounds(self) -> tuple[int, int | None]:
        """Parse `{m}`, `{m,}`, `{m,n}` or `{,n}`."""
        start = self.at
        self.at += 1
        least = self.count()
        most: int | None = least
        if self.peek() == ",":
            self.at += 1
            most = self.count()
            least, most = least or 0, most
        elif least is None:
            self.fail(start, "a repetition is {m}, {m,}, {m,n} or {,n}")
        if self.peek() != "}" or (most is None and self.text[start + 1 : self.at].strip() == ","):
            self.fail(start, "a repetition is {m}, {m,}, {m,n} or {,n}")
        self.at += 1
        if most is not None and most < (least or 0):
            self.fail(start, "the repetition ends below its start; swap the numbers")
        return least or 0, most

    def count(self) -> int | None:
        """Parse a number and the blanks around it, if any."""
        self.skip(lines=False)
        found = _COUNT.match(self.text, self.at)
        if not found:
            return None
        digits = found.group().lstrip("0") or "0"
        if len(digits) > 9 or int(digits) > self.limits.max_repetition:
            self.fail(self.at, f"more than {self.limits.max_repetition} repetitions (max_repetition)")
        self.at = found.end()
        self.skip(lines=False)
        return int(digits)


def _shown(name: str) -> str:
    """Return a rule's name for a message, shortened."""
    return repr(name if len(name) <= 60 else f"{name[:57]}...")
