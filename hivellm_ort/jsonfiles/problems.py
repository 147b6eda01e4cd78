"""Faults of a JSON file: collected with their positions, or raised at the first one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hivellm_ort.errors import ManifestError
from hivellm_ort.jsonfiles.positions import Position, locate

__all__ = ["MAX_PROBLEMS", "Problem", "Report", "error_of"]

MAX_PROBLEMS = 50
"""Most problems that one report lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a JSON file. Its string is one line for people.

    Attributes:
        file: Name of the file, without folders.
        pointer: JSON pointer of the value, or of the field that is missing; empty for the whole file.
        fault: What is wrong, and what to do.
        position: Position of the value, or of the object that lacks it; None without a text.
    """

    file: str
    pointer: str
    fault: str
    position: Position | None

    def __str__(self) -> str:
        where = (
            self.file if self.position is None else f"{self.file}:{self.position.line}:{self.position.column}"
        )
        # Keys of a hostile file are escaped and cut.
        pointer = ascii(self.pointer if len(self.pointer) <= 160 else self.pointer[:160] + "...")[1:-1]
        return f"{where}: {pointer}: {self.fault}" if pointer else f"{where}: {self.fault}"


def error_of(problems: Sequence[Problem]) -> ManifestError:
    """Return an error that lists the problems, one a line. Its attributes are those of the first."""
    line, column = problems[0].position or (None, None)
    return ManifestError(
        "\n".join(str(problem) for problem in problems),
        pointer=problems[0].pointer or None,
        line=line,
        column=column,
    )


class Report:
    """The faults of one JSON file: one for each value, at most `MAX_PROBLEMS`.

    Args:
        file: Name of the file, without folders.
        text: Its text, for the positions; None without one.
        lenient: Keep faults of optional fields. Otherwise the first fault is raised.
        cure: The advice for faults that have none of their own; empty for no advice.
    """

    def __init__(self, file: str, text: str | None = None, *, lenient: bool = False, cure: str = "") -> None:
        self._file = file
        self._cure = cure
        self._text = text
        self._lenient = lenient
        self._faults: dict[str, str] = {}
        self._more = False

    def note(self, pointer: str, fault: str) -> None:
        """Record a fault of an optional field. Only the first fault of a value counts.

        Raises:
            ManifestError: The report is not lenient.
        """
        if not self._lenient:
            self.fail(pointer, fault)
        self._keep(pointer, fault)

    def fail(self, pointer: str, fault: str) -> NoReturn:
        """Record a fault and raise it.

        Raises:
            ManifestError: Always.
        """
        if self._cure and ";" not in fault:
            fault = f"{fault}; {self._cure}"
        self._keep(pointer, fault)
        raise error_of([self._problem(pointer, fault, self._locate([pointer]))])

    def problems(self) -> tuple[Problem, ...]:
        """Return all recorded faults, in the order of the file, or of the pointers if there is no text."""
        found = self._locate(self._faults)
        listed = [self._problem(pointer, fault, found) for pointer, fault in self._faults.items()]
        listed.sort(key=lambda problem: (problem.position or (0, 0), problem.pointer))
        if self._more:
            listed.append(Problem(self._file, "", "there are more problems; correct these first", None))
        return tuple(listed)

    def _keep(self, pointer: str, fault: str) -> None:
        if pointer in self._faults:
            return
        if len(self._faults) < MAX_PROBLEMS:
            self._faults[pointer] = fault
        else:
            self._more = True

    def _locate(self, pointers: Iterable[str]) -> dict[str, Position]:
        return {} if self._text is None else locate(self._text, pointers)

    def _problem(self, pointer: str, fault: str, found: Mapping[str, Position]) -> Problem:
        return Problem(self._file, pointer, fault, found.get(pointer))
