"""Prints rules in llguidance's dialect of Lark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.syntax import (
    ROOT,
    Choice,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    TokenReference,
    fold,
)
from hivellm_ort.grammar.terminals import choose_terminals

__all__ = ["to_lark"]

_MAX_NESTING = 2  # nested parentheses; deeper parts become separate rules
_MAX_CHAIN = 200  # nested rules: llguidance's compiler recurses, on about 1 MiB of stack
_RULE_NAME = re.compile(r"\b(?:r\d+_|g\d)\w*")


def to_lark(rules: Rules, *, exact: bool = True) -> str:
    """Return the rules as a Lark grammar for llguidance.

    Rules stay rules, in lower case. Regular parts become terminals if llguidance's lexer, which takes the longest
    match, loses no text by it.

    Args:
        rules: Rules as `normalise` leaves them.
        exact: True keeps the language exactly, to recognise texts. False allows faster masks, to generate texts:
            words are always as long as possible, so `aFROM` is left out if a blank or the end of a repetition can
            separate `a` and `FROM`. Nothing else is left out, and each text that can begin can also end.

    Raises:
        GrammarError: A token is negated by its text, which llguidance cannot express, or a chain of references is too
            long.
    """
    return _Printer(rules, exact=exact).text()


class _Printer:
    """Prints one grammar."""

    def __init__(self, rules: Rules, *, exact: bool) -> None:
        self.source = rules
        self.chosen = choose_terminals(rules.nodes, exact=exact)
        self.names = {ROOT: "start"}
        for number, name in enumerate(self.chosen.rules):
            if name != ROOT:
                self.names[name] = f"r{number}_{re.sub('[^a-z0-9]', '_', name.lower())[:40]}"
        for number, name in enumerate(self.chosen.regexes):
            self.names[name] = f"T{number}"
        self.helpers: dict[str, str] = {}
        self.rule = ROOT

    def text(self) -> str:
        """Return the whole grammar."""
        lines: dict[str, str] = {}
        for name, node in self.chosen.rules.items():
            self.rule = name
            lines[self.names[name]] = fold(node, self.printed).text
        lines |= self.helpers
        self.check_chains(lines)
        lines |= {self.names[name]: f"/{regex}/" for name, regex in self.chosen.regexes.items()}
        return "".join(f"{name}: {text}\n" for name, text in lines.items())

    def check_chains(self, lines: Mapping[str, str]) -> None:
        """Refuse chains of rules that would overflow the stack of llguidance's compiler."""
        seen = {"start"}
        path = [_RULE_NAME.finditer(lines["start"])]
        while path:
            found = next(path[-1], None)
            if found is None:
                path.pop()
            elif found.group() not in seen:
                seen.add(found.group())
                path.append(_RULE_NAME.finditer(lines[found.group()]))
                if len(path) > _MAX_CHAIN:
                    raise GrammarError(
                        f"rules use each other in a chain of more than {_MAX_CHAIN} rules and groups; "
                        "put the rules of the chain into fewer ones"
                    )

    def printed(self, node: Node, parts: list[_Printed]) -> _Printed:
        """Return a node's text, given the texts of its parts."""
        match node:
            case Reference(name):
                return _Printed(self.names[name])
            case TokenReference():
                return _Printed(self.token(node))
            case Sequence(()):
                return _Printed('""')
            case Sequence():
                return _joined(" ", [self.bracketed(part, _REPEAT) for part in parts], _SEQUENCE)
            case Choice():
                return _joined(" | ", [self.bracketed(part, _SEQUENCE) for part in parts], _CHOICE)
            case Repeat(_, least, most):
                mark = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
                if mark is None:
                    mark = f"{{{least},{'' if most is None else most}}}"
                item = self.bracketed(parts[0], _ATOM)
                return _Printed(item.text + mark, item.depth, _REPEAT)
            case _:
                raise AssertionError(f"{node} is part of a terminal")

    def bracketed(self, part: _Printed, loosest: int) -> _Printed:
        """Return a part, in parentheses if it binds looser than `loosest`."""
        if part.binding <= loosest:
            return part
        if part.depth < _MAX_NESTING:
            return _Printed(f"({part.text})", part.depth + 1)
        name = f"g{len(self.helpers)}"
        self.helpers[name] = part.text
        return _Printed(name)

    def token(self, node: TokenReference) -> str:
        """Return a token in llguidance's notation."""
        if node.id is not None:
            return f"<[^{node.id}]>" if node.negated else f"<[{node.id}]>"
        if node.negated:
            line = self.source.lines.get(self.rule)
            place = f"line {line}, " if line else ""
            raise GrammarError(
                f"{place}in rule {self.rule!r}: !{node.text} cannot be enforced by the token's text; write its id, "
                "as in !<[1000]>",
                line=line,
            )
        return str(node.text)


_ATOM, _REPEAT, _SEQUENCE, _CHOICE = range(4)  # how tightly a text binds


@dataclass(frozen=True, slots=True)
class _Printed:
    """A node's text.

    Attributes:
        text: The text.
        depth: Depth of its parentheses.
        binding: How tightly it binds, from `_ATOM` on.
    """

    text: str
    depth: int = 0
    binding: int = _ATOM


def _joined(mark: str, parts: list[_Printed], binding: int) -> _Printed:
    """Join parts with a separator."""
    return _Printed(mark.join(part.text for part in parts), max(part.depth for part in parts), binding)
