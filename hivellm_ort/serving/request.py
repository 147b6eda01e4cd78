"""What is asked of a base: checked, in tokens, and fixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.tools.formats import CallFormat

__all__ = ["GenerationRequest"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One answer that somebody wants. It never changes; a `Generation` says what came of it.

    Attributes:
        prompt_ids: the rendered prompt, at least one token.
        max_tokens: most tokens of the answer, from 1.
        eos_token_ids: tokens that end the answer.
        sampling: how tokens are chosen.
        closing_token_ids: tokens that are a stop string where the grammar is complete.
        timeout: seconds after which the answer is cancelled, counted from the question; None for no limit.
        expert: name of the expert, for the result.
        answers: tokens of given answers, whose probabilities are wanted in place of an answer.
        warnings: what the result says about the grammar, a sentence each.
        call_format: how calls of tools are written in the answer; None where none are read from it.
        tool_names: the tools that it may call.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    eos_token_ids: Collection[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    closing_token_ids: Collection[int] = ()
    timeout: float | None = None
    expert: str = ""
    answers: tuple[tuple[int, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    call_format: CallFormat | None = None
    tool_names: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The options of sampling that are used, by name, with `max_tokens`."""
        return dataclasses.asdict(self.sampling) | {"max_tokens": self.max_tokens}
