"""Events and results for the tests."""

from __future__ import annotations

from typing import Any

from hivellm_ort.observability import (
    BaseFreed,
    BaseLoaded,
    Event,
    ExpertEvicted,
    ExpertLoaded,
    ExpertUnloaded,
    FirstToken,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    StepDone,
    Swapped,
)
from hivellm_ort.result import InferenceResult, Timings


def queued(expert: str = "sql") -> RequestQueued:
    """A request that was submitted."""
    return RequestQueued(expert=expert, base="tiny")


def started(expert: str = "sql", seconds: float = 0.2) -> RequestStarted:
    """A request that got a row."""
    return RequestStarted(expert=expert, base="tiny", queued_seconds=seconds)


def finished(expert: str = "sql", **values: Any) -> RequestFinished:
    """A finished request, with `eos` unless something else is said."""
    if "error" not in values:
        values.setdefault("finish_reason", "eos")
    return RequestFinished(expert=expert, base="tiny", **values)


def step(rows: int = 3, capacity: int = 4) -> StepDone:
    """A pass over five tokens."""
    return StepDone(base="tiny", rows=rows, capacity=capacity, seconds=0.012, tokens=5)


def result(**values: Any) -> InferenceResult:
    """A result of ten prompt and five generated tokens."""
    fields: dict[str, Any] = {
        "text": "SELECT secret",
        "reasoning": "",
        "tokens": (1, 2, 3, 4, 5),
        "prompt_tokens": 10,
        "cached_tokens": 8,
        "completion_tokens": 5,
        "accepted_tokens": 2,
        "forced_tokens": 1,
        "grammar_complete": None,
        "finish_reason": "eos",
        "logprobs": None,
        "sampling": {},
        "timings": Timings(swap=0.0, prefill=0.05, decode=0.04),
        "expert": "package-name",
    }
    return InferenceResult(**(fields | values))


ONE_OF_EACH: tuple[Event, ...] = (
    BaseLoaded(base="tiny", digest="b0", bytes=1000, seconds=0.5),
    ExpertLoaded(expert="sql", base="tiny", digest="a0", bytes=10),
    ExpertLoaded(expert="json", base="tiny", digest="a1", bytes=20),
    queued(),
    started(),
    FirstToken(expert="sql", base="tiny", seconds=0.25),
    Swapped(expert="sql", base="tiny", seconds=0.0002),
    step(),
    finished(
        prompt_tokens=10,
        cached_tokens=8,
        completion_tokens=5,
        forced_tokens=1,
        accepted_tokens=2,
        queued_seconds=0.2,
        prefill_seconds=0.05,
        decode_seconds=0.04,
    ),
    ExpertEvicted(expert="json", base="tiny", digest="a1", bytes=20, reason="count"),
    ExpertUnloaded(expert="sql", base="tiny", digest="a0", bytes=10),
    BaseFreed(base="tiny", digest="b0", bytes=1000, reason="memory"),
)
"""The life of one base, two experts and one request."""
