"""Megabytes of some distributions and of all that they require, as installed in this environment."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def closure(roots: list[str]) -> dict[str, int]:
    """Bytes by distribution; what is not installed here is left out."""
    sizes: dict[str, int] = {}
    waiting = [canonicalize_name(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name in sizes:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        files = {Path(str(file.locate())).resolve() for file in distribution.files or ()}
        sizes[name] = sum(path.stat().st_size for path in files if path.is_file())
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return sizes


if __name__ == "__main__":
    _sizes = closure(sys.argv[1:])
    print(json.dumps({"megabytes": round(sum(_sizes.values()) / 1e6, 1), "packages": len(_sizes)}))
