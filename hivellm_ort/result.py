"""What a generation returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FinishReason", "InferenceResult", "Timings"]

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds spent inside the library, not in the caller's code between two pieces of a stream.

    Attributes:
        swap: binding the expert's adapter; 0.0 where it was bound already.
        prefill: from the request to the first token, swap included.
        decode: all tokens after the first.
    """

    swap: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class InferenceResult:
    """A finished generation.

    Attributes:
        text: the answer, without special tokens and without the stop string.
        tokens: generated token ids, the end-of-sequence token included where it was reached.
        prompt_tokens: tokens of the rendered prompt.
        completion_tokens: `len(tokens)`.
        finish_reason: `eos` (the model ended), `stop` (a stop string), `length` (`max_tokens`), `cancelled`.
        timings: where the time went.
        expert: name of the expert.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    timings: Timings
    expert: str

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first over `timings.decode`; 0.0 for a single token."""
        return (self.completion_tokens - 1) / self.timings.decode if self.timings.decode > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, `tokens_per_second` included."""
        return {
            **dataclasses.asdict(self),
            "tokens": list(self.tokens),
            "tokens_per_second": self.tokens_per_second,
        }
