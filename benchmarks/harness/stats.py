"""Medians and ratios of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "quiet_rounds", "ratio", "spread"]

DISTURBED = 0.15  # of a core: more than that in other processes spoils a sample
_ENOUGH = 3


@dataclass(frozen=True)
class Spread:
    """Median, least and most of the rounds."""

    median: float
    least: float
    most: float
    rounds: int

    def text(self, digits: int = 2) -> str:
        """`1.20 (1.05-1.31)`."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """`ours` over `theirs`, round by round: what slows a round down slows both.

    Raises:
        ValueError: they have different numbers of rounds.
    """
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def quiet_rounds(disturbed: Sequence[Sequence[float]]) -> list[int]:
    """The rounds to keep: those in which nobody was disturbed, if there are three; else all.

    Args:
        disturbed: for every system what share of a core others took, by round.
    """
    rounds = range(len(disturbed[0]) if disturbed else 0)
    quiet = [number for number in rounds if all(shares[number] <= DISTURBED for shares in disturbed)]
    return quiet if len(quiet) >= _ENOUGH else list(rounds)
