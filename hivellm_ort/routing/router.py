"""Ranks experts for a prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from hivellm_ort.errors import OptionError
from hivellm_ort.printable import printable
from hivellm_ort.routing.candidates import Candidate, Route, Scorer, Tags
from hivellm_ort.routing.scorer import KeywordScorer
from hivellm_ort.routing.words import MAX_SHOWN

__all__ = ["Router", "TagValue", "rank"]

TagValue = str | float | Iterable[str | float]
"""Value or values of a tag."""

_SEPARATOR = re.compile("[=:]")


class Router:
    """Ranks a fixed set of candidates. Make a new one when the set changes. Thread-safe.

    Args:
        candidates: The experts to choose among.
        scorer: Scores one candidate. Default: `KeywordScorer` of the candidates.
    """

    def __init__(self, candidates: Iterable[Candidate], *, scorer: Scorer | None = None) -> None:
        self._candidates = tuple(candidates)
        self._scorer = KeywordScorer(self._candidates) if scorer is None else scorer

    def rank(
        self,
        prompt: str,
        *,
        tags: Mapping[str, TagValue] | Iterable[str] | None = None,
        include_unfit: bool = False,
    ) -> list[Route]:
        """Rank the candidates, best first. Ties are ordered by priority, then by name.

        Args:
            prompt: The prompt as the user wrote it.
            tags: Properties of the request, for the hints of manifests: `{"database": "sql"}`, or
                texts such as `"database=sql"`, `"database:sql"` and bare words.
            include_unfit: Whether to include candidates with a score of 0 or less.

        Raises:
            OptionError: The scorer gave a score that is not finite.
        """
        known = _tags(tags)
        routes = [
            (self._route(prompt, candidate, known), candidate.priority) for candidate in self._candidates
        ]
        routes.sort(key=lambda pair: (-pair[0].score, -pair[1], pair[0].name))
        return [route for route, _ in routes if include_unfit or route.fits]

    def _route(self, prompt: str, candidate: Candidate, tags: Tags) -> Route:
        score, reasons = self._scorer(prompt, candidate, tags)
        if not math.isfinite(score):
            raise OptionError(
                f"the scorer gave {score} for expert {printable(candidate.name, most=MAX_SHOWN)}; "
                "give a finite number"
            )
        return Route(candidate.name, score, tuple(reasons))


def rank(
    prompt: str,
    candidates: Iterable[Candidate],
    *,
    tags: Mapping[str, TagValue] | Iterable[str] | None = None,
    scorer: Scorer | None = None,
    include_unfit: bool = False,
) -> list[Route]:
    """Rank candidates for one prompt. For many prompts make one `Router`.

    Args:
        prompt: As for `Router.rank`.
        candidates: As for `Router`.
        tags: As for `Router.rank`.
        scorer: As for `Router`.
        include_unfit: As for `Router.rank`.

    Raises:
        OptionError: The scorer gave a score that is not finite.
    """
    return Router(candidates, scorer=scorer).rank(prompt, tags=tags, include_unfit=include_unfit)


def _tags(tags: Mapping[str, TagValue] | Iterable[str] | None) -> Tags:
    known: dict[str, tuple[str, ...]] = {}
    if isinstance(tags, Mapping):
        for key, value in tags.items():
            many = [value] if isinstance(value, str | int | float) else value
            known[key] = tuple(map(str, many))
        return known
    for text in [tags] if isinstance(tags, str) else tags or ():
        *key, value = (part.strip() for part in _SEPARATOR.split(text, maxsplit=1))
        name = key[0] if key else ""
        known[name] = (*known.get(name, ()), value)
    return known
