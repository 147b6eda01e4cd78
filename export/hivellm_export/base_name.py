"""What a base model is called: after its repository where the hub's cache named its folder by a commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["folder_name"]

_CACHED = re.compile(r"models--(?:[^/\\]+?--)?(.+)")  # models--Qwen--Qwen3-0.6B, models--gpt2
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def folder_name(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the model in `folder`, and where it is from; the latter is empty for the folder's own name.

    Links and `.` are resolved. Of `models--ORG--NAME/snapshots/COMMIT`, the hub's cache, it is `NAME`. A folder that
    is called like a commit somewhere else takes the last part of `_name_or_path`, else the name of the folder above.

    Args:
        folder: a folder that exists.
        config: its `config.json`.
    """
    path = folder.resolve()
    cached = _repository(path.parts)
    if cached is not None:
        return cached, f"the hub's cache folder models--…--{cached}"
    if not _DIGEST.fullmatch(path.name):
        # ModelScope's cache writes a dot as three underscores.
        return path.name.replace("___", "."), ""
    original = config.get("_name_or_path")
    if isinstance(original, str) and original.strip("/\\."):
        parts = PurePosixPath(original.replace("\\", "/")).parts
        name = _repository(parts) or parts[-1]
        if not _DIGEST.fullmatch(name):
            return name, "_name_or_path of config.json, for the folder is named by a digest"
    above = next((part for part in reversed(path.parent.parts) if part not in ("snapshots", path.anchor)), "")
    return above or path.name, "the folder above, for its own is named by a digest" if above else ""


def _repository(parts: tuple[str, ...]) -> str | None:
    """The repository's name in a path of the hub's cache: `…/models--ORG--NAME/snapshots/COMMIT`."""
    if len(parts) < 3 or parts[-2] != "snapshots":
        return None
    found = _CACHED.fullmatch(parts[-3])
    return found[1] if found else None
