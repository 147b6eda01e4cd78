"""What a generation returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "AnswerScore",
    "FinishReason",
    "InferenceResult",
    "ScoreResult",
    "Timings",
    "TokenLogprob",
    "ToolCall",
]

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
        text: the answer.
        token_ids: its tokens.
        logprob: natural logarithm of the probability that the model gives these tokens. Where another given answer
            begins with them, that the model then ends is part of it.
        share: probability of this answer among those given; the shares of all are 1 together.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    share: float


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
class ToolCall:
    """A call of a tool in an answer.

    Attributes:
        id: names the call, for the `tool_call_id` of its result.
        name: the function.
        arguments: its arguments, the JSON text of an object.
        complete: whether `arguments` is a whole JSON object. False where the answer was cut off inside the call, and
            where a model without a constraint wrote something else.
    """

    id: str
    name: str
    arguments: str
    complete: bool = True

    def to_message(self) -> dict[str, Any]:
        """The call as `tool_calls` of a message has it, in the form of OpenAI's API."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


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
            nothing follow), `cancelled`; `scored` for a request that only scores.
        timings: where the time went.
        expert: name of the expert.
        warnings: what of the JSON schema has no effect or was not enforced, a sentence each.
        tool_calls: the calls of tools in `text`, in their order; empty without `tools`, and where the chat template
            writes calls in no known format.
        content: `text` without these calls.
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
    tool_calls: tuple[ToolCall, ...] = ()
    content: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a turn for `messages`, in the form of OpenAI's API, with its calls."""
        if not self.tool_calls:
            return {"role": "assistant", "content": self.content}
        calls = [call.to_message() for call in self.tool_calls]
        return {"role": "assistant", "content": self.content or None, "tool_calls": calls}

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
            "tool_calls": [dataclasses.asdict(call) for call in self.tool_calls],
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True)
class ScoreResult:
    """What `score` returns.

    Attributes:
        answers: a score for each given answer, in the order in which they were given.
        prompt_tokens: tokens of the rendered prompt.
        cached_tokens: how many of these an earlier request had read already.
        timings: where the time went; `prefill` is all of the scoring.
        expert: name of the expert.
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
