"""The exporter's rooms and what each may import, read from the code without PyTorch."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import hivellm_ort

EXPORTER = Path(hivellm_ort.__file__).parents[1] / "export" / "hivellm_export"
# What each room may import of the exporter: a room knows only rooms above it in this list.
ROOMS: dict[str, set[str]] = {
    "__init__": set(),
    "libraries": set(),
    "targets": set(),
    "huggingface": set(),
    "gguf": {"huggingface"},
    "base_model": {"gguf", "huggingface", "libraries"},
    "merged_vocabulary": {"base_model"},
    "merge": {"base_model", "merged_vocabulary"},
    "weights": {"base_model", "targets"},
    "graph": {"libraries", "weights"},
    "packaging": {"base_model", "graph", "targets", "weights"},
    "verify": {"base_model", "libraries"},
    "pipeline": {"base_model", "graph", "merge", "packaging", "targets", "verify"},
    "cli": {"libraries", "pipeline", "targets", "verify"},
    "fetch": set(),
    "demo": {"fetch", "libraries", "pipeline"},
}


def test_rooms() -> None:
    """Every import between rooms of the exporter is in the list, and points upwards in it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in EXPORTER.rglob("*.py"):
        room = path.relative_to(EXPORTER).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found[room] |= {name.split(".")[1] for name in names if name.startswith("hivellm_export.")}
    assert ROOMS == {room: found[room] - {room} for room in found}
    order = list(ROOMS)
    assert [] == [room for room, known in ROOMS.items() if not known <= set(order[: order.index(room)])]
