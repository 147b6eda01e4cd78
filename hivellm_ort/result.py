"""Results of generation."""

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
        logprob: The natural logarithm of its probability; -inf for an impossible token.
        top: The most likely tokens and their log probabilities, best first. Ties are in order of ids.
        forced: Whether the grammar left no other token.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    forced: bool = False


@dataclass(frozen=True)
class AnswerScore:
    """How likely one of several given answers is.

    Attributes:
        text: The answer.
        token_ids: Its tokens.
        logprob: Natural logarithm of the probability that the model gives these tokens. If another given answer
            begins with these tokens, it includes the probability that the model ends after them.
        share: Probability of this answer among the given ones. The shares of all add up to 1.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    share: float


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds.

    Attributes:
        queue: From the request to its start.
        swap: Binding the expert's adapter; 0.0 if it was bound already.
        prefill: From the start to the first token, swap included.
        decode: All tokens after the first.
    """

    queue: float = 0.0
    swap: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class ToolCall:
    """A tool call in an answer.

    Attributes:
        id: The id of the call, for the `tool_call_id` of its result.
        name: The name of the function.
        arguments: The arguments, the JSON text of an object.
        complete: Whether `arguments` is a complete JSON object. False if the answer was cut off inside the call, or
            if a model without a constraint wrote another text.
    """

    id: str
    name: str
    arguments: str
    complete: bool = True

    def to_message(self) -> dict[str, Any]:
        """Return the call as an item of `tool_calls` of a message, in the form of OpenAI's API."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class InferenceResult:
    """A finished generation.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        reasoning: The text that a thinking model wrote before the answer; not part of `text`.
        tokens: Generated token ids, including the end-of-sequence token if it was reached.
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: Prompt tokens taken from the prefix cache.
        completion_tokens: `len(tokens)`.
        accepted_tokens: Generated tokens that prompt lookup guessed.
        forced_tokens: Generated tokens that the grammar forced; they were not sampled.
        reasoning_tokens: Generated tokens of the think block before the answer, with its tags.
        grammar_complete: Whether the answer satisfies its grammar; None without a grammar. Also False if the answer
            was cancelled, or if a stop string cut it inside a token.
        logprobs: One `TokenLogprob` per token if `logprobs` was requested, else None.
        sampling: The sampling options in effect: the caller's, the manifest's or the defaults.
        finish_reason: `eos` (the model ended), `stop` (a stop string), `length` (`max_tokens`), `grammar` (it
            allows no further token), `cancelled`; `scored` for a request that only scores.
        timings: Seconds of each phase.
        expert: Name of the expert.
        warnings: A sentence for each part of the JSON schema that has no effect or was not enforced.
        tool_calls: The calls of tools in `text`, in their order. Empty without `tools`, and if the chat template
            writes calls in an unknown format.
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
    reasoning_tokens: int = 0
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
        """Return all fields as JSON types, `tokens_per_second` included."""
        return {
            **dataclasses.asdict(self),
            "tokens": list(self.tokens),
            "warnings": list(self.warnings),
            "tool_calls": [dataclasses.asdict(call) for call in self.tool_calls],
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True)
class ScoreResult:
    """The result of `score`.

    Attributes:
        answers: A score for each given answer, in the given order.
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: Prompt tokens taken from the prefix cache.
        timings: Seconds of each phase; `prefill` is the whole scoring.
        expert: Name of the expert.
    """

    answers: tuple[AnswerScore, ...]
    prompt_tokens: int
    cached_tokens: int
    timings: Timings
    expert: str

    @property
    def best(self) -> AnswerScore:
        """The likeliest answer; the first of several equal ones."""
        return max(self.answers, key=lambda answer: answer.logprob)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types. A log probability of -inf becomes null."""
        document = dataclasses.asdict(self)
        for answer in document["answers"]:
            answer["token_ids"] = list(answer["token_ids"])
            answer["logprob"] = answer["logprob"] if math.isfinite(answer["logprob"]) else None
        return {**document, "answers": list(document["answers"])}
