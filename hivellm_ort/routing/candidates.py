"""What routing chooses among, what it answers, and what a scorer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hivellm_ort.package.manifest_parts import Routing

__all__ = ["DEFAULT_PRIORITY", "Candidate", "Route", "Scorer", "Tags"]

DEFAULT_PRIORITY = 0.5
"""The priority of an expert whose manifest sets none, as the format documents it."""

Tags = Mapping[str, tuple[str, ...]]
"""What the caller knows of a request: the values of each key; words without a key stand under `""`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expert that a prompt may be for.

    Attributes:
        name: The name it is loaded under.
        routing: The section `routing` of its manifest; without one, its capabilities alone speak for it.
        capabilities: Capabilities of its manifest, such as `database:sql`.
    """

    name: str
    routing: Routing = field(default_factory=Routing)
    capabilities: tuple[str, ...] = ()

    @property
    def priority(self) -> float:
        """The priority of the manifest, else `DEFAULT_PRIORITY`."""
        return DEFAULT_PRIORITY if self.routing.priority is None else self.routing.priority


@dataclass(frozen=True, slots=True)
class Route:
    """How well one expert fits a prompt.

    Attributes:
        name: The candidate's name.
        score: Above 0 when it fits; higher is better.
        reasons: Sentence fragments such as `keyword "group by" +1.50`, the weightiest first.
    """

    name: str
    score: float
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the prompt is for this expert at all."""
        return self.score > 0


class Scorer(Protocol):
    """Says how well a prompt fits a candidate: a function, or an object with `__call__`.

    It is called once per candidate and prompt, from any thread.
    """

    def __call__(self, prompt: str, candidate: Candidate, tags: Tags, /) -> tuple[float, Sequence[str]]:
        """Score one candidate.

        Args:
            prompt: The prompt as the user wrote it.
            candidate: The expert.
            tags: What the caller knows of the request; empty when nothing.

        Returns:
            A finite score, above 0 when the candidate fits, and the reasons.
        """
