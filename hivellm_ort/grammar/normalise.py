"""Simplifies rules for the parser without changing their language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.analysis import holds, reachable
from hivellm_ort.grammar.syntax import (
    EMPTY,
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    fold,
    parts_of,
)

__all__ = ["normalise"]


def normalise(rules: Rules) -> Rules:
    """Return simpler rules of the same language.

    Rules that `root` does not reach are removed. Left and right recursion of a rule becomes repetition. An empty
    alternative becomes `?`, and alternatives of one character become one class. Directly nested sequences,
    alternatives and repetitions are merged. Other recursion stays.

    Args:
        rules: Rules from `parse_gbnf`.

    Raises:
        GrammarError: A rule can never end, so it matches nothing.
    """
    reached = reachable(rules.nodes)
    ends = holds(reached, _ends)
    for name in reached:
        if name not in ends:
            line = rules.lines.get(name)
            raise GrammarError(
                f"{f'line {line}, ' if line else ''}rule {name!r} can never end: each of its alternatives needs a "
                "rule that can never end; add one that does not",
                line=line,
            )
    builder = _Builder()
    simple = {name: builder.simplified(node) for name, node in reached.items()}
    for name in simple:
        simple[name] = builder.without_recursion(name, simple)
    reached = reachable(simple)
    return Rules(reached, {name: rules.lines[name] for name in reached if name in rules.lines})


def _ends(leaf: Node) -> bool:
    """Return whether a node without parts matches some text."""
    return not isinstance(leaf, CharacterClass) or bool(leaf.spans())


class _Builder:
    """Builds simplified nodes.

    Equal nodes are shared, so that a comparison does not walk their trees.
    """

    def __init__(self) -> None:
        self.made: dict[object, Node] = {}

    def simplified(self, node: Node) -> Node:
        """Return the simplified tree."""
        return fold(node, self.rebuilt)

    def rebuilt(self, node: Node, parts: list[Node]) -> Node:
        """Return a node with simplified parts."""
        match node:
            case Literal(""):
                return self.once(EMPTY)
            case Sequence():
                return self.sequence(parts)
            case Choice():
                return self.choice(parts)
            case Repeat(_, least, most):
                return self.repeat(parts[0], least, most)
            case CharacterClass():
                return self.once(CharacterClass(node.spans()))
            case _:
                return self.once(node)

    def once(self, node: Node) -> Node:
        """Return the shared node that equals this one."""
        parts = parts_of(node)
        key: object = node
        if parts:
            bounds = (node.min, node.max) if isinstance(node, Repeat) else ()
            key = (type(node), bounds, tuple(id(part) for part in parts))
        return self.made.setdefault(key, node)

    def sequence(self, items: Iterable[Node]) -> Node:
        """Return a sequence, with literals joined and `a* a` or `a a*` written as `a+`."""
        joined: list[Node] = []
        for item in items:
            for part in item.items if isinstance(item, Sequence) else (item,):
                last = joined[-1] if joined else None
                if isinstance(part, Literal) and isinstance(last, Literal):
                    joined[-1] = self.once(Literal(last.text + part.text))
                elif last is not None and (_is_star_of(last, part) or _is_star_of(part, last)):
                    joined[-1] = self.once(Repeat(part if _is_star_of(last, part) else last, 1, None))
                else:
                    joined.append(part)
        return joined[0] if len(joined) == 1 else self.once(Sequence(tuple(joined)))

    def choice(self, options: Iterable[Node]) -> Node:
        """Return a choice, with single characters in one class and an empty option as `?`."""
        kept: dict[int, Node] = {}
        ranges: list[tuple[int, int]] = []
        where: int | None = None  # the first option that is one character
        empty = False
        for option in options:
            flat = [option]
            if isinstance(option, Repeat) and (option.min, option.max) == (0, 1):
                empty = True
                flat = [option.item]
            if isinstance(flat[0], Choice):
                flat = list(flat[0].options)
            for part in flat:
                spans = _one_character(part)
                if _is_empty(part):
                    empty = True
                elif spans is None:
                    kept[id(part)] = part
                else:
                    if where is None:
                        where = id(part)
                        kept[where] = part
                    ranges += spans
        if where is not None and len(ranges) > 1:
            kept[where] = self.once(CharacterClass(CharacterClass(tuple(ranges)).spans()))
        found = tuple(kept.values())
        if not found:
            return self.once(EMPTY)
        node = found[0] if len(found) == 1 else self.once(Choice(found))
        return self.repeat(node, 0, 1) if empty else node

    def repeat(self, item: Node, least: int, most: int | None) -> Node:
        """Return a repetition, with directly nested `?`, `*` and `+` merged."""
        if _is_empty(item) or most == 0:
            return self.once(EMPTY)
        if (least, most) == (1, 1):
            return item
        simple = ((0, 1), (0, None), (1, None))
        if isinstance(item, Repeat) and (least, most) in simple and (item.min, item.max) in simple:
            most = 1 if most == item.max == 1 else None
            return self.repeat(item.item, least * item.min, most)
        return self.once(Repeat(item, least, most))

    def without_recursion(self, name: str, nodes: Mapping[str, Node]) -> Node:
        """Return a rule's body with left and right recursion written as repetition.

        In the general case `x ::= d x | b | x g x | x a`, each text of `x` is `d* b`, then any number of `g d* b` and
        `a`. The parts may contain `x` too.
        """
        before: list[Node] = []
        ends: list[Node] = []
        between: list[Node] = []
        behind: list[Node] = []
        options = self.options(name, nodes)
        for option in options:
            items = option.items if isinstance(option, Sequence) else (option,)
            last = items[-1] if items else None
            optional = isinstance(last, Repeat) and (last.min, last.max) == (0, 1)
            left = len(items) > 0 and items[0] == Reference(name)
            right = (last.item if optional and isinstance(last, Repeat) else last) == Reference(name)
            if right and (len(items) > 1 or not left):
                (between if left else before).append(self.sequence(items[left:-1]))
            if left and (optional or not right):
                behind.append(self.sequence(items[1:-1] if right else items[1:]))
            elif not left and (optional or not right):
                ends.append(self.sequence(items[:-1]) if right else option)
        if len(ends) == len(options) and not before:
            return nodes[name]
        start = self.repeated_before(self.choice(before), self.choice(ends)) if before else self.choice(ends)
        more = [self.sequence([self.choice(between), start])] if between else []
        if not more and not behind:
            return start
        return self.sequence([start, self.repeat(self.choice([*more, *behind]), 0, None)])

    def options(self, name: str, nodes: Mapping[str, Node]) -> list[Node]:
        """Return the alternatives of a rule. Rules through which it recurs at the ends are expanded."""
        found: list[Node] = []
        for option in self.alternatives(nodes[name]):
            inner = self.alternatives(nodes[option.name]) if isinstance(option, Reference) else []
            if any(
                isinstance(part, Sequence)
                and part.items
                and Reference(name) in (part.items[0], part.items[-1])
                for part in inner
            ):
                found += inner
            else:
                found.append(option)
        return found

    def alternatives(self, body: Node) -> list[Node]:
        """Return the alternatives of a body, including an empty one."""
        optional = isinstance(body, Repeat) and (body.min, body.max) == (0, 1)
        inner = body.item if optional and isinstance(body, Repeat) else body
        found: list[Node] = list(inner.options) if isinstance(inner, Choice) else [inner]
        return [*found, self.once(EMPTY)] if optional else found

    def repeated_before(self, again: Node, end: Node) -> Node:
        """Return `again* end`, and `end (rest end)*` where `again` is `end rest`."""
        if again is end:
            return self.repeat(again, 1, None)
        if isinstance(end, Repeat) and (end.min, end.max) == (0, 1) and end.item is again:
            return self.repeat(again, 0, None)
        head = end.items if isinstance(end, Sequence) else (end,)
        items = again.items if isinstance(again, Sequence) else (again,)
        size = len(head)
        if head and len(items) > size and all(a is b for a, b in zip(head, items, strict=False)):
            return self.sequence([*head, self.repeat(self.sequence([*items[size:], *head]), 0, None)])
        return self.sequence([self.repeat(again, 0, None), end])


def _is_empty(node: Node) -> bool:
    """Return whether a simple node matches only the empty text."""
    return isinstance(node, Sequence) and not node.items


def _is_star_of(node: Node, item: Node) -> bool:
    """Return whether a simple node is the item with `*`."""
    return isinstance(node, Repeat) and node.item is item and (node.min, node.max) == (0, None)


def _one_character(node: Node) -> list[tuple[int, int]] | None:
    """Return the ranges of a node that always matches one character, or None for other nodes."""
    if isinstance(node, Literal) and len(node.text) == 1:
        return [(ord(node.text), ord(node.text))]
    if isinstance(node, CharacterClass):
        return list(node.spans())
    return None
