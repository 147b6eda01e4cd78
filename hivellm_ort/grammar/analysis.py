"""Computes properties of rules across references."""

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
    """Return the rules that `root` uses, including itself, in order."""
    seen = {ROOT}
    todo = [ROOT]
    while todo:
        for name in names_in(nodes[todo.pop()]):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return {name: node for name, node in nodes.items() if name in seen}


def is_empty_leaf(leaf: Node) -> bool:
    """Return whether a node without parts matches the empty text."""
    return leaf in (Literal(""), Sequence(()))


def holds(
    nodes: Mapping[str, Node],
    leaf: Callable[[Node], bool],
    *,
    optional: Callable[[Repeat], bool] = lambda node: node.min == 0,
) -> set[str]:
    """Return the rules that have a property, computed from their parts.

    A sequence has the property if all items have it, a choice if one option has it, a repetition if its item has it
    or may be left out, and a reference if its rule has it. The time is linear in the size of the rules.

    Args:
        nodes: The rules.
        leaf: Returns whether a node without parts has the property. References to unknown rules are such nodes.
        optional: Returns whether a repetition's item may be left out.
    """
    parents: list[int] = []  # the parent of each node
    needed: list[int] = []  # number of parts that must still hold before the node holds
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
