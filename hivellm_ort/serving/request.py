"""A checked, immutable request to a base."""

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
    """The request for one answer. It never changes; its `Generation` holds status and result.

    Attributes:
        prompt_ids: Tokens of the rendered prompt, at least one.
        max_tokens: Most tokens of the answer, from 1.
        eos_token_ids: Tokens that end the answer.
        sampling: The sampling parameters.
        closing_token_ids: Tokens that act as stop strings when the grammar is complete.
        timeout: Seconds from the request until the answer is cancelled; None for no limit.
        expert: Name of the expert, for the result.
        answers: Tokens of given answers to score. Then no answer is generated.
        warnings: Sentences about the grammar, for the result.
        call_format: The format of tool calls in the answer; None if none are read from it.
        tool_names: The tools that it may call.
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
        """The sampling options in effect by name, and `max_tokens`."""
        return dataclasses.asdict(self.sampling) | {"max_tokens": self.max_tokens}
