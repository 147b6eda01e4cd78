"""Facts about rules that hold through any number of references."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hivellm_ort.grammar.syntax import (
    ROOT,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    names_in,
    parts_of,
)

__all__ = ["holds", "is_empty_leaf", "reachable"]


def reachable(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the rules that `root` uses, itself among them, in their order."""
    seen = {ROOT}
    todo = [ROOT]
    while todo:
        for name in names_in(nodes[todo.pop()]):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return {name: node for name, node in nodes.items() if name in seen}


def is_empty_leaf(leaf: Node) -> bool:
    """Say whether a node without parts matches the empty text."""
    return leaf in (Literal(""), Sequence(()))


def holds(
    nodes: Mapping[str, Node],
    leaf: Callable[[Node], bool],
    *,
    optional: Callable[[Repeat], bool] = lambda node: node.min == 0,
) -> set[str]:
    """Return the rules for which a property holds that passes from parts to wholes.

    It holds for a sequence when it holds for all items, for alternatives when for one option, for a repetition when
    its item may be left out or has the property, and for a reference when it holds for the rule.
    The time is linear in the size of the rules.

    Args:
        nodes: The rules.
        leaf: Says whether the property holds for a node without parts, among them references to no rule.
        optional: Says whether a repetition's item may be left out.
    """
    parents: list[int] = []  # of each node the node right above it
    needed: list[int] = []  # how many more parts must hold before the node does
    users: dict[str, list[int]] = {name: [] for name in nodes}
    names: dict[int, str] = {}
    true: list[int] = []
    for name, body in nodes.items():
        todo = [(body, -1)]
        names[len(parents)] = name
        while todo:
            node, parent = todo.pop()
            number = len(parents)
            parents.append(parent)
            parts = parts_of(node)
            needed.append(len(parts) if isinstance(node, Sequence) else 1)
            if isinstance(node, Reference) and node.name in users:
                users[node.name].append(number)
            elif isinstance(node, Repeat) and optional(node):
                needed[number] = 0
                true.append(number)
            elif isinstance(node, Sequence | Choice) and not parts:
                needed[number] = 0
                true += [number] if isinstance(node, Sequence) else []
            elif not parts and leaf(node):
                needed[number] = 0
                true.append(number)
            todo.extend((part, number) for part in parts)
    found: set[str] = set()
    while true:
        number = true.pop()
        if number in names:
            found.add(names[number])
            ups = users[names[number]]
        else:
            ups = [parents[number]]
        for up in ups:
            needed[up] -= 1
            if needed[up] == 0:
                true.append(up)
    return found
