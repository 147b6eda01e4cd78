"""Chooses the experts of a manager that fit a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import OptionError, UnknownExpertError, argument
from hivellm_ort.manager.entry import ExpertEntry
from hivellm_ort.manager.registry import ExpertRegistry
from hivellm_ort.text.messages import question_of

if TYPE_CHECKING:
    from hivellm_ort.routing import Route, Router, Scorer, Tags

__all__ = ["ExpertChooser"]

_MAX_CONTEXT = 4000  # characters of a system message and of a schema; more add no new words


class ExpertChooser:
    """Ranks the experts of a manager. Thread-safe.

    Args:
        registry: The experts.
        scorer: Scores each expert. Default: by keywords, capabilities and hints.
    """

    def __init__(self, registry: ExpertRegistry, scorer: Scorer | None):
        self._registry = registry
        self._scorer = scorer
        self._router: tuple[list[ExpertEntry], Router] | None = None  # of these experts

    def rank(
        self,
        prompt: str | None,
        messages: Sequence[Mapping[str, Any]] | None,
        context: Sequence[str | None],
        tags: Tags | None,
    ) -> list[Route]:
        """Return the experts that fit a question, best first.

        Args:
            prompt: The question; None if `messages` ends with it.
            messages: As in `GenerateOptions`.
            context: Further texts, such as a system message or a schema.
            tags: Known properties of the request.

        Raises:
            OptionError: There is no question.
        """
        question = prompt if prompt is not None else question_of(messages)
        if question is None:
            raise OptionError("nothing to answer: give a prompt, or messages with a turn of the user")
        return self._rank("\n".join([*(text[:_MAX_CONTEXT] for text in context if text), question]), tags)

    def _rank(self, prompt: str, tags: Tags | None) -> list[Route]:
        from hivellm_ort.routing import Candidate, Router  # slow to import

        entries = self._registry.entries()
        made = self._router
        if made is None or made[0] != entries:
            candidates = [
                Candidate(entry.name, entry.manifest.routing, entry.manifest.capabilities)
                for entry in entries
            ]
            self._router = made = (entries, Router(candidates, scorer=self._scorer))
        return made[1].rank(prompt, tags=tags)

    def best(
        self,
        prompt: str | None,
        messages: Sequence[Mapping[str, Any]] | None,
        context: Sequence[str | None],
        tags: Tags | None,
        *,
        required: bool,
    ) -> str | None:
        """Return the name of the expert that `rank` puts first; None if no expert fits.

        Args:
            prompt: As for `rank`.
            messages: As for `rank`.
            context: As for `rank`.
            tags: As for `rank`.
            required: Whether an expert must fit.

        Raises:
            UnknownExpertError: An expert must fit, and none does.
            OptionError: There is no question.
        """
        routes = self.rank(prompt, messages, context, tags)
        if routes:
            return routes[0].name
        if not required:
            return None
        known = ", ".join(repr(entry.name) for entry in self._registry.entries()) or "none"
        raise UnknownExpertError(
            f"no expert fits the prompt; loaded are: {known}. Name one, or use the base model with "
            f"{argument('or_base', True)}"
        )
