"""What a generation returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AnswerScore", "FinishReason", "InferenceResult", "ScoreResult", "Timings", "TokenLogprob"]

FinishReason = Literal["eos", "stop", "length", "grammar", "cancelled", "scored"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was.

    Attributes:
        token_id: The token.
        logprob: The natural logarithm of its probability; -inf for a token that was impossible.
        top: The most likely tokens and theirs, best first, of equals the lower id first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class AnswerScore:
    """How likely one of several given answers is.

    Attributes:
        text: The answer.
        token_ids: Its tokens.
        logprob: Natural logarithm of the probability that the model gives these tokens. Where another given answer
            begins with them, that the model then ends is part of it.
        share: Probability of this answer among those given; the shares of all are 1 together.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    share: float


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds.

    Attributes:
        queue: From the request to its turn.
        swap: Binding the expert's adapter; 0.0 where it was bound already.
        prefill: From its turn to the first token, swap included.
        decode: All tokens after the first.
    """

    queue: float = 0.0
    swap: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class InferenceResult:
    """A finished generation.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        reasoning: What a thinking model wrote before it; not part of `text`.
        tokens: Generated token ids, the end-of-sequence token included where it was reached.
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: How many of these an earlier request had read already.
        completion_tokens: `len(tokens)`.
        accepted_tokens: How many of these prompt lookup guessed.
        forced_tokens: How many of these the grammar left no choice about; they were not sampled.
        grammar_complete: Whether the answer satisfies its grammar; None where it had none. False too where the answer
            was left before its end, and where a stop string cut it inside a token.
        logprobs: One `TokenLogprob` per token, where `logprobs` was asked for.
        sampling: The options of sampling that were used: the caller's, the manifest's or the defaults.
        finish_reason: `eos` (the model ended), `stop` (a stop string), `length` (`max_tokens`), `grammar` (it lets
            nothing follow), `cancelled`; `scored` for a request that only scores.
        timings: Where the time went.
        expert: Name of the expert.
        warnings: What of the JSON schema has no effect or was not enforced, a sentence each.
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
    logprobs: tuple[TokenLogprob, ...] | None
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


@dataclass(frozen=True)
class ScoreResult:
    """What `score` returns.

    Attributes:
        answers: A score for each given answer, in the order in which they were given.
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: How many of these an earlier request had read already.
        timings: Where the time went; `prefill` is all of the scoring.
        expert: Name of the expert.
    """

    answers: tuple[AnswerScore, ...]
    prompt_tokens: int
    cached_tokens: int
    timings: Timings
    expert: str

    @property
    def best(self) -> AnswerScore:
        """The likeliest answer; of equals the first."""
        return max(self.answers, key=lambda answer: answer.logprob)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; a logarithm of zero is null."""
        document = dataclasses.asdict(self)
        for answer in document["answers"]:
            answer["token_ids"] = list(answer["token_ids"])
            answer["logprob"] = answer["logprob"] if math.isfinite(answer["logprob"]) else None
        return {**document, "answers": list(document["answers"])}
