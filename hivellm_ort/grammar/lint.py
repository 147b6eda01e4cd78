"""Warns about parts of a grammar that are probably mistakes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from hivellm_ort.grammar.analysis import holds, is_empty_leaf, reachable
from hivellm_ort.grammar.syntax import (
    ROOT,
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    fold,
    names_in,
    parts_of,
)

__all__ = ["warnings_of"]

_BLANKS = frozenset(map(ord, " \t\r\n"))
_MAX_CYCLES = 100  # left-recursive rules that are shown with their cycle
_MAX_REPEATED = 20  # alternatives of one rule that are shown as repeated

Edges = Mapping[str, Mapping[str, None]]


def warnings_of(rules: Rules) -> list[str]:
    """Return warnings about a grammar, one sentence each, in the order of its rules.

    It finds left recursion, optional blanks, rules that `root` never uses, rules that match only the empty text, and
    repeated alternatives.

    Args:
        rules: Rules from `parse_gbnf`. Do not normalise them first, which hides many mistakes.
    """
    nodes = rules.nodes
    used = reachable(nodes)
    nullable = holds(nodes, is_empty_leaf)
    uses = {name: dict.fromkeys(names_in(node)) for name, node in nodes.items()}
    texts = _reaching(uses, {name for name, node in nodes.items() if _has_leaf(node, _is_text)})
    visible = _reaching(uses, {name for name, node in nodes.items() if _has_leaf(node, _is_visible)})
    cycles = _cycles({name: _first_names(node, nullable) for name, node in nodes.items()})
    found = []
    for name, node in nodes.items():
        place = f"line {rules.line(name)}: rule {name!r}"
        if name not in used:
            found.append(f"{place} is never used from {ROOT!r}.")
        if name in cycles:
            way = " -> ".join(map(repr, cycles[name]))
            found.append(f"{place} can begin with itself ({way}); llama.cpp refuses such left recursion.")
        if name not in texts:
            found.append(f"{place} matches only the empty text.")
        elif name in nullable and name not in visible:
            found.append(
                f"{place} is blanks that may be left out, so that words around it can run into each other; "
                "use `+` where a blank is needed."
            )
        found += [
            f"{place} has the same alternative twice, as number {first} and number {second}."
            for first, second in _repeated_alternatives(node)
        ]
    return found


def _is_text(leaf: Node) -> bool:
    """Return whether a leaf that is not a reference matches more than the empty text."""
    return not isinstance(leaf, Reference) and not is_empty_leaf(leaf)


def _is_visible(leaf: Node) -> bool:
    """Return whether a leaf that is not a reference can match more than blanks."""
    if isinstance(leaf, Literal):
        return any(ord(char) not in _BLANKS for char in leaf.text)
    if isinstance(leaf, CharacterClass):
        return any(
            high - low > len(_BLANKS) or not _BLANKS.issuperset(range(low, high + 1))
            for low, high in leaf.spans()
        )
    return _is_text(leaf)


def _has_leaf(node: Node, wanted: Callable[[Node], bool]) -> bool:
    """Return whether a tree has a wanted leaf."""
    return fold(node, lambda part, inner: any(inner) or (not parts_of(part) and wanted(part)))


def _reaching(uses: Edges, targets: set[str]) -> set[str]:
    """Return the rules that reach a target, including the targets."""
    users: dict[str, list[str]] = {name: [] for name in uses}
    for name, others in uses.items():
        for other in others:
            users[other].append(name)
    found = set(targets)
    todo = list(targets)
    while todo:
        new = [user for user in users[todo.pop()] if user not in found]
        found.update(new)
        todo += new
    return found


def _first_names(node: Node, nullable: set[str]) -> dict[str, None]:
    """Return the names of the rules that can begin a text of the node."""

    def visit(part: Node, inner: list[tuple[dict[str, None], bool]]) -> tuple[dict[str, None], bool]:
        if isinstance(part, Reference):
            return {part.name: None}, part.name in nullable
        names: dict[str, None] = {}
        if isinstance(part, Sequence):
            for first, empty in inner:
                names |= first
                if not empty:
                    return names, False
            return names, True
        for first, _ in inner:
            names |= first
        empty = is_empty_leaf(part) or any(empty for _, empty in inner)
        return names, empty or (isinstance(part, Repeat) and part.min == 0)

    return fold(node, visit)[0]


def _cycles(edges: Edges) -> dict[str, list[str]]:
    """Return a shortest cycle through each rule that has one."""
    found: dict[str, list[str]] = {}
    for group in _strong_groups(edges):
        members = set(group)
        for name in group[:_MAX_CYCLES]:
            before: dict[str, str] = {}
            todo = deque([name])
            while todo and name not in before:
                here = todo.popleft()
                for other in edges[here]:
                    if other in members and other not in before:
                        before[other] = here
                        todo.append(other)
            if name in before:
                way = [name, before[name]]
                while way[-1] != name:
                    way.append(before[way[-1]])
                found[name] = way[::-1]
    return found


def _strong_groups(edges: Edges) -> Iterator[list[str]]:
    """Yield the strongly connected components, by Kosaraju's algorithm, in the order of the rules."""
    finished: list[str] = []
    seen: set[str] = set()
    for start in edges:
        todo = [(start, iter(edges[start]))] if start not in seen else []
        seen.add(start)
        while todo:
            name, others = todo[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                finished.append(name)
                todo.pop()
            else:
                seen.add(following)
                todo.append((following, iter(edges[following])))
    back: dict[str, list[str]] = {name: [] for name in edges}
    for name, others_of in edges.items():
        for other in others_of:
            back[other].append(name)
    order = {name: number for number, name in enumerate(edges)}
    grouped: set[str] = set()
    for start in reversed(finished):
        if start in grouped:
            continue
        grouped.add(start)
        group, stack = [], [start]
        while stack:
            name = stack.pop()
            group.append(name)
            new = [other for other in back[name] if other not in grouped]
            grouped.update(new)
            stack += new
        yield sorted(group, key=order.__getitem__)


def _repeated_alternatives(node: Node) -> list[tuple[int, int]]:
    """Return the positions, from 1, of alternatives that repeat an earlier one of the same choice."""
    numbers: dict[object, int] = {}
    found: list[tuple[int, int]] = []

    def visit(part: Node, inner: list[int]) -> int:
        if isinstance(part, Choice):
            first: dict[int, int] = {}
            for place, number in enumerate(inner, 1):
                if number in first and len(found) < _MAX_REPEATED:
                    found.append((first[number], place))
                first.setdefault(number, place)
        bounds = (part.min, part.max) if isinstance(part, Repeat) else None
        key = (type(part), bounds, tuple(inner)) if parts_of(part) else part
        return numbers.setdefault(key, len(numbers))

    fold(node, visit)
    return found
