"""Turns, and what comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.workers import WorkerError

__all__ = ["Results", "Row", "take_turns"]


@dataclass(frozen=True)
class Row:
    """What one system did in one case.

    Attributes:
        suite, model, case, system: as in the plan.
        unit: of the values.
        values: one per round.
        disturbed: by round, what share of a core other processes took.
        extra: what else is worth telling.
    """

    suite: str
    model: str
    case: str
    system: str
    unit: str
    values: list[float]
    disturbed: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that was measured, and everything that could not be."""

    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, suite: str, model: str, case: str, system: str, reason: str) -> None:
        """Note what did not run, and why."""
        self.failures.append(
            {"suite": suite, "model": model, "case": case, "system": system, "reason": reason}
        )

    def as_json(self) -> dict[str, Any]:
        """As plain types."""
        return {"rows": [asdict(row) for row in self.rows], "failures": self.failures}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Results:
        """From what `as_json` gave."""
        return cls([Row(**row) for row in document["rows"]], list(document["failures"]))


def take_turns(
    entrants: Mapping[str, Callable[[int], dict[str, Any]]], rounds: int, *, warm_up: bool
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Let every entrant do its work once a round, in another order every time, the same in every run.

    What a turn leaves behind (caches of the processor, its clock) may slow the next one, so nobody always follows the
    same other.

    Args:
        entrants: by name; called with the number of the round.
        rounds: how many count.
        warm_up: whether there is one before, number -1, that does not count.

    Returns:
        The answers by name and round; and why the others, who are in no round, dropped out.
    """
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in entrants}
    failures: dict[str, str] = {}
    for number in range(-1 if warm_up else 0, rounds):
        names = [name for name in entrants if name not in failures]
        random.Random(number).shuffle(names)
        for name in names:
            try:
                answer = entrants[name](number)
            except WorkerError as error:
                failures[name] = str(error)
                continue
            if number >= 0:
                samples[name].append(answer)
    return {name: answers for name, answers in samples.items() if name not in failures}, failures
