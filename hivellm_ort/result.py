"""What a generation returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FinishReason", "InferenceResult", "Timings"]

FinishReason = Literal["eos", "stop", "length", "grammar", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds.

    Attributes:
        queue: from the request to its turn.
        swap: binding the expert's adapter; 0.0 where it was bound already.
        prefill: from its turn to the first token, swap included.
        decode: all tokens after the first.
    """

    queue: float = 0.0
    swap: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class InferenceResult:
    """A finished generation.

    Attributes:
        text: the answer, without special tokens and without the stop string.
        reasoning: what a thinking model wrote before it; not part of `text`.
        tokens: generated token ids, the end-of-sequence token included where it was reached.
        prompt_tokens: tokens of the rendered prompt.
        cached_tokens: how many of these an earlier request had read already.
        completion_tokens: `len(tokens)`.
        accepted_tokens: how many of these prompt lookup guessed.
        forced_tokens: how many of these the grammar left no choice about; they were not sampled.
        grammar_complete: whether the answer satisfies its grammar; None where it had none. False too where the answer
            was left before its end, and where a stop string cut it inside a token.
        logprobs: one `TokenLogprob` per token, where `logprobs` was asked for.
        sampling: the options of sampling that were used: the caller's, the manifest's or the defaults.
        finish_reason: `eos` (the model ended), `stop` (a stop string), `length` (`max_tokens`), `grammar` (it lets
            nothing follow), `cancelled`.
        timings: where the time went.
        expert: name of the expert.
        warnings: what of the JSON schema has no effect or was not enforced, a sentence each.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    accepted_tokens: int
    forced_tokens: int
    grammar_complete: bool | None
    finish_reason: FinishReason
    logprobs: tuple[Any, ...] | None
    sampling: Mapping[str, Any]
    timings: Timings
    expert: str
    warnings: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first over `timings.decode`; 0.0 for a single token."""
        return (self.completion_tokens - 1) / self.timings.decode if self.timings.decode > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, `tokens_per_second` included."""
        return {
            **dataclasses.asdict(self),
            "tokens": list(self.tokens),
            "warnings": list(self.warnings),
            "tokens_per_second": self.tokens_per_second,
        }
