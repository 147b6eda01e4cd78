"""Types of routing: candidates, routes and scorers."""

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
    """An expert that routing may choose.

    Attributes:
        name: The name it is loaded under.
        routing: The section `routing` of its manifest. Without it only the capabilities count.
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
        score: Above 0 if the expert fits; higher is better.
        reasons: Sentence fragments such as `keyword "group by" +1.50`, by descending weight.
    """

    name: str
    score: float
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the expert fits the prompt."""
        return self.score > 0


class Scorer(Protocol):
    """Scores how well a candidate fits a prompt.

    It is called once per candidate and prompt, from any thread. A function is a scorer too.
    """

    def __call__(self, prompt: str, candidate: Candidate, tags: Tags, /) -> tuple[float, Sequence[str]]:
        """Score one candidate.

        Args:
            prompt: The prompt as the user wrote it.
            candidate: The expert.
            tags: Properties of the request that the caller knows; may be empty.

        Returns:
            A finite score, above 0 if the candidate fits, and the reasons.
        """
