"""What the parts of a soak run share: packages and their answers, and what was seen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.clients import NAMES, Answers, record
from harness.levels import Track
from hivellm_ort import ExpertManager

__all__ = ["Report", "Run", "comes_to_rest"]

_PREFIX_BYTES = (
    1 << 18
)  # so few that they are full when a run is warm; a base has one number for all its experts


@dataclass
class Report:
    """What was seen.

    Attributes:
        memory: of each part, its levels after warming up and at the end, as plain types.
        stress: counts of the threads.
        faults: what does not hold, a line each.
        track: resident memory over time.
    """

    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    stress: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    track: Track = field(default_factory=Track)


@dataclass(frozen=True)
class Run:
    """The packages of a run.

    Attributes:
        packages: all of them.
        paths: by name, the packages that may be loaded as it.
        answers: of every package.
        loading: options of `Expert.load`.
    """

    packages: Sequence[Path]
    paths: Mapping[str, Sequence[Path]]
    answers: Answers
    loading: Mapping[str, Any]

    @classmethod
    def of(cls, packages: Sequence[Path], store: Path) -> Run:
        """With each name for a third of the packages, and their answers recorded."""
        loading = {
            "cache_dir": store,
            "threads": 1,
            "trust": "off",
            "prefix_cache_bytes": _PREFIX_BYTES,
        }
        named = {name: packages[number :: len(NAMES)] for number, name in enumerate(NAMES)}
        paths = {name: own or packages for name, own in named.items()}
        return cls(packages, paths, record(packages, **loading), loading)

    def manager(self, **options: Any) -> ExpertManager:
        """A manager without experts."""
        return ExpertManager(**self.loading, **options)


def comes_to_rest(manager: ExpertManager, seconds: float = 60) -> bool:
    """Wait until a manager answers nothing; whether that came to be."""
    end = time.monotonic() + seconds
    while any(base["active"] or base["queued"] for base in manager.stats()["bases"]):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
