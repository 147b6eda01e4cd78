"""Events of loading and generation, as immutable records.

No event holds a path, a prompt or an answer. Every `RequestQueued` is followed by exactly one `RequestFinished`,
with at most one `RequestStarted` and one `FirstToken` between them. Every `ExpertLoaded` is followed by one
`ExpertUnloaded` or one `ExpertEvicted` of the same digest, every `BaseLoaded` by one `BaseFreed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hivellm_ort.result import FinishReason, InferenceResult

__all__ = [
    "BaseFreed",
    "BaseLoaded",
    "Event",
    "EvictionReason",
    "ExpertEvicted",
    "ExpertLoaded",
    "ExpertUnloaded",
    "FirstToken",
    "Listener",
    "RequestFinished",
    "RequestQueued",
    "RequestStarted",
    "StepDone",
    "Swapped",
]

EvictionReason = Literal["count", "memory"]
"""`count`: more experts than may be loaded; `memory`: more bytes than the budget allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQueued:
    """A request was submitted.

    Attributes:
        expert: Name the expert is loaded under.
        base: Short name of its base model.
    """

    expert: str
    base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted:
    """A request got a row of the running batch.

    Attributes:
        expert: Name the expert is loaded under.
        base: Short name of its base model.
        queued_seconds: Time between submission and start.
    """

    expert: str
    base: str
    queued_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The first token of an answer was generated.

    Attributes:
        expert: Name the expert is loaded under.
        base: Short name of its base model.
        seconds: Time since the submission of the request.
    """

    expert: str
    base: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """A request ended, with an answer, by cancellation or with an error.

    Attributes:
        expert: Name the expert is loaded under.
        base: Short name of its base model.
        finish_reason: As in `InferenceResult`; None after an error.
        error: Name of the error's type; None without an error.
        started: False if it ended while it waited for a row.
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: Prompt tokens taken from the prefix cache.
        completion_tokens: Generated tokens.
        forced_tokens: Generated tokens that the grammar forced.
        accepted_tokens: Generated tokens that prompt lookup guessed.
        queued_seconds: From the submission to the row, or to the end if it got no row.
        prefill_seconds: From the row to the first token.
        decode_seconds: All tokens after the first.
    """

    expert: str
    base: str
    finish_reason: FinishReason | None = None
    error: str | None = None
    started: bool = True
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0
    accepted_tokens: int = 0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @classmethod
    def from_result(
        cls, result: InferenceResult, *, expert: str, base: str, queued_seconds: float, started: bool = True
    ) -> RequestFinished:
        """Make the event of a request that ended without an error.

        Args:
            result: Its result.
            expert: Name the expert is loaded under. `result.expert` is the name in its manifest.
            base: Short name of its base model.
            queued_seconds: Time it waited for a row.
            started: Whether it got a row.
        """
        return cls(
            expert=expert,
            base=base,
            finish_reason=result.finish_reason,
            started=started,
            prompt_tokens=result.prompt_tokens,
            cached_tokens=result.cached_tokens,
            completion_tokens=result.completion_tokens,
            forced_tokens=result.forced_tokens,
            accepted_tokens=result.accepted_tokens,
            queued_seconds=queued_seconds,
            prefill_seconds=result.timings.prefill,
            decode_seconds=result.timings.decode,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoaded:
    """An expert's adapter was loaded: by the caller, or because an evicted expert was used again.

    Attributes:
        expert: Name it is loaded under.
        base: Short name of its base model.
        digest: SHA-256 of the adapter, in hex.
        bytes: Memory of the adapter's weights.
    """

    expert: str
    base: str
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUnloaded:
    """An adapter was freed because the caller unloaded, replaced or closed it.

    Attributes:
        expert: Name it was loaded under.
        base: Short name of its base model.
        digest: SHA-256 of the adapter, in hex.
        bytes: Memory of the adapter's weights.
    """

    expert: str
    base: str
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertEvicted:
    """An adapter was freed to make room. Its next use loads it again.

    Attributes:
        expert: Name it is loaded under.
        base: Short name of its base model.
        digest: SHA-256 of the adapter, in hex.
        bytes: Memory of the adapter's weights.
        reason: The exceeded limit.
    """

    expert: str
    base: str
    digest: str
    bytes: int
    reason: EvictionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLoaded:
    """A base model was loaded.

    Attributes:
        base: Its short name.
        digest: SHA-256 of its bundle, in hex.
        bytes: Memory of its weights and caches.
        seconds: Duration.
    """

    base: str
    digest: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFreed:
    """A base model was freed.

    Attributes:
        base: Its short name.
        digest: SHA-256 of its bundle, in hex.
        bytes: Memory of its weights and caches.
        reason: `unused` (its last expert was unloaded), `closed` (the manager was closed), or the exceeded limit.
    """

    base: str
    digest: str
    bytes: int
    reason: EvictionReason | Literal["unused", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """An adapter replaced another one in the graph.

    Attributes:
        expert: Name of the expert it belongs to.
        base: Short name of its base model.
        seconds: Duration.
    """

    expert: str
    base: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A base computed a prompt, or the next tokens of its running rows.

    Attributes:
        base: Its short name.
        rows: Rows in use.
        capacity: Number of rows.
        seconds: Duration.
        tokens: Input tokens, prompts and guesses included.
    """

    base: str
    rows: int
    capacity: int
    seconds: float
    tokens: int


Event = (
    RequestQueued
    | RequestStarted
    | FirstToken
    | RequestFinished
    | ExpertLoaded
    | ExpertUnloaded
    | ExpertEvicted
    | BaseLoaded
    | BaseFreed
    | Swapped
    | StepDone
)
"""Any event."""

Listener = Callable[[Event], None]
"""A function that gets events. Several worker threads call it at once: it must be quick and thread-safe."""
