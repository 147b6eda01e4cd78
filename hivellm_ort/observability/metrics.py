"""Counters, gauges and histograms of events."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from hivellm_ort.observability.events import (
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
from hivellm_ort.observability.exposition import MetricFamily, json_values, prometheus_text
from hivellm_ort.observability.histogram import Histogram

__all__ = ["Metrics"]

_MAX_LABELS = 200
_OTHER = "other"
# 0.1 ms (a swap) to 100 s (a wait under load), near enough to each other for useful percentiles.
_SECONDS = (*(float(f"{m}e{e}") for e in range(-4, 2) for m in (1, 1.5, 2, 3, 5, 7)), 100.0)
_ROWS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0)


class _ExpertCounts:
    """Counters of one expert."""

    __slots__ = ("accepted", "cached", "completion", "forced", "hits", "prompt", "requests", "swaps")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.prompt = self.cached = self.completion = self.forced = self.accepted = 0
        self.hits = self.swaps = 0


class Metrics:
    """A listener that counts events. Every method may be called from any thread.

    Gauges count from the moment of registration, so add the listener before anything is loaded. The first 200
    expert names are counted separately, later ones together as `other`. The same applies to error types.
    """

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._counting = threading.Lock()
        self._experts: dict[str, _ExpertCounts] = {}
        self._errors: Counter[str] = Counter()
        self._evictions: Counter[tuple[str, str]] = Counter()
        self._evicted_bytes: Counter[str] = Counter()
        self._first_token = Histogram(_SECONDS)
        self._inter_token = Histogram(_SECONDS)
        self._queue_time = Histogram(_SECONDS)
        self._swap_time = Histogram(_SECONDS)
        self._step_time = Histogram(_SECONDS)
        self._rows = Histogram(_ROWS)
        self._row_sum = self._row_slots = self._step_tokens = 0
        self._queued = self._active = self._loaded_experts = self._loaded_bases = 0
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            RequestQueued: self._on_queued,
            RequestStarted: self._on_started,
            FirstToken: self._on_first_token,
            RequestFinished: self._on_finished,
            ExpertLoaded: self._on_expert_loaded,
            ExpertUnloaded: self._on_expert_unloaded,
            ExpertEvicted: self._on_expert_evicted,
            BaseLoaded: self._on_base_loaded,
            BaseFreed: self._on_base_freed,
            Swapped: self._on_swapped,
            StepDone: self._on_step,
        }

    def __call__(self, event: Event) -> None:
        """Count one event."""
        # Never waits for the lock: in a thread that is counting, the garbage collector may close a stream, which
        # causes another event. The holder of the lock, or the next event or reader, counts the waiting ones.
        self._waiting.append(event)
        if self._counting.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._counting.release()

    def snapshot(self) -> dict[str, Any]:
        """Return all values of one moment as JSON types.

        Returns:
            Values by the names of `prometheus()` without `hivellm_ort_`. A metric with labels is a dictionary by
            label values, one level per label. A histogram is a dictionary of `count`, `sum`,
            `buckets` (number of values up to each bound) and the estimates `p50`, `p95` and `p99`, which are None
            without values.
        """
        return json_values(self.families())

    def prometheus(self) -> str:
        """Return Prometheus' text format 0.0.4. Serve it as `PROMETHEUS_CONTENT_TYPE`."""
        return prometheus_text(self.families())

    def _count(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            self._handlers[type(event)](event)

    def _on_queued(self, event: RequestQueued) -> None:
        self._queued += 1

    def _on_started(self, event: RequestStarted) -> None:
        self._queued -= 1
        self._active += 1
        self._queue_time.observe(event.queued_seconds)

    def _on_first_token(self, event: FirstToken) -> None:
        self._first_token.observe(event.seconds)

    def _on_finished(self, event: RequestFinished) -> None:
        if event.started:
            self._active -= 1
        else:
            self._queued -= 1
            self._queue_time.observe(event.queued_seconds)
        counts = self._of(event.expert)
        counts.requests[event.finish_reason or "error"] += 1
        counts.prompt += event.prompt_tokens
        counts.cached += event.cached_tokens
        counts.completion += event.completion_tokens
        counts.forced += event.forced_tokens
        counts.accepted += event.accepted_tokens
        if event.cached_tokens:
            counts.hits += 1
        if event.completion_tokens > 1:
            self._inter_token.observe(event.decode_seconds / (event.completion_tokens - 1))
        if event.error is not None:
            self._errors[_label(event.error, self._errors)] += 1

    def _on_expert_loaded(self, event: ExpertLoaded) -> None:
        self._loaded_experts += 1

    def _on_expert_unloaded(self, event: ExpertUnloaded) -> None:
        self._loaded_experts -= 1

    def _on_expert_evicted(self, event: ExpertEvicted) -> None:
        self._loaded_experts -= 1
        self._evict("expert", event)

    def _on_base_loaded(self, event: BaseLoaded) -> None:
        self._loaded_bases += 1

    def _on_base_freed(self, event: BaseFreed) -> None:
        self._loaded_bases -= 1
        if event.reason in ("count", "memory"):
            self._evict("base", event)

    def _on_swapped(self, event: Swapped) -> None:
        self._of(event.expert).swaps += 1
        self._swap_time.observe(event.seconds)

    def _on_step(self, event: StepDone) -> None:
        self._row_sum += event.rows
        self._row_slots += event.capacity
        self._step_tokens += event.tokens
        self._rows.observe(event.rows)
        self._step_time.observe(event.seconds)

    def _evict(self, kind: str, event: ExpertEvicted | BaseFreed) -> None:
        self._evictions[kind, event.reason] += 1
        self._evicted_bytes[kind] += event.bytes

    def _of(self, expert: str) -> _ExpertCounts:
        counts = self._experts.get(expert)
        if counts is None:
            counts = self._experts.setdefault(_label(expert, self._experts), _ExpertCounts())
        return counts

    def families(self) -> list[MetricFamily]:
        """Return all metrics."""
        with self._counting:
            self._count()
            return [
                self._by_expert_and_reason(),
                _counter(
                    "request_errors_total",
                    "Requests that ended with an error, by its type.",
                    ("error",),
                    (((name,), count) for name, count in self._errors.items()),
                ),
                self._by_expert("prompt", "prompt_tokens_total", "Tokens of rendered prompts."),
                self._by_expert(
                    "cached", "cached_tokens_total", "Prompt tokens taken over from the prefix cache."
                ),
                self._by_expert("completion", "completion_tokens_total", "Generated tokens."),
                self._by_expert(
                    "forced", "forced_tokens_total", "Generated tokens a grammar left no choice about."
                ),
                self._by_expert(
                    "accepted", "accepted_tokens_total", "Generated tokens prompt lookup had guessed."
                ),
                self._by_expert("hits", "prefix_cache_hits_total", "Requests that took over a kept prefix."),
                _histogram(
                    "time_to_first_token_seconds",
                    "From a request's submission to its first token.",
                    self._first_token,
                ),
                _histogram(
                    "inter_token_latency_seconds",
                    "Time between two tokens of an answer, its mean over the answer.",
                    self._inter_token,
                ),
                _histogram(
                    "queue_time_seconds",
                    "From a request's submission to its row, or to its end where it got none.",
                    self._queue_time,
                ),
                self._by_expert("swaps", "swaps_total", "Adapters bound in another one's place."),
                _histogram(
                    "swap_seconds", "Time to bind an adapter in another one's place.", self._swap_time
                ),
                _counter(
                    "evictions_total",
                    "What left memory to make room, by kind and the limit that was exceeded.",
                    ("kind", "reason"),
                    self._evictions.items(),
                ),
                _counter(
                    "evicted_bytes_total",
                    "Bytes freed by evictions.",
                    ("kind",),
                    (((kind,), count) for kind, count in self._evicted_bytes.items()),
                ),
                _histogram("step_seconds", "Time of one forward pass.", self._step_time),
                _counter(
                    "step_tokens_total", "Tokens read by forward passes.", (), [((), self._step_tokens)]
                ),
                _histogram("batch_rows", "Rows in use in a forward pass.", self._rows),
                _counter("batch_row_slots_total", "Rows there were, summed up.", (), [((), self._row_slots)]),
                _gauge(
                    "batch_occupancy_ratio",
                    "Rows in use over rows there were, of all passes.",
                    self._row_sum / self._row_slots if self._row_slots else 0.0,
                ),
                _gauge("loaded_experts", "Experts whose adapter is in memory.", self._loaded_experts),
                _gauge("loaded_bases", "Base models in memory.", self._loaded_bases),
                _gauge("active_requests", "Requests that have a row.", self._active),
                _gauge("queued_requests", "Requests that wait for a row.", self._queued),
            ]

    def _by_expert(self, attribute: str, name: str, description: str) -> MetricFamily:
        samples = (((expert,), getattr(counts, attribute)) for expert, counts in self._experts.items())
        return _counter(name, description, ("expert",), samples)

    def _by_expert_and_reason(self) -> MetricFamily:
        samples = (
            ((expert, reason), count)
            for expert, counts in self._experts.items()
            for reason, count in counts.requests.items()
        )
        return _counter(
            "requests_total",
            "Requests that ended, by finish reason; error is one.",
            ("expert", "finish_reason"),
            samples,
        )


def _label(name: str, known: Collection[str]) -> str:
    """Return the name, or `other` if there are too many names already."""
    return name if name in known or len(known) < _MAX_LABELS else _OTHER


def _counter(
    name: str,
    description: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> MetricFamily:
    return MetricFamily(name, "counter", description, labels, dict(samples))


def _gauge(name: str, description: str, value: float) -> MetricFamily:
    return MetricFamily(name, "gauge", description, (), {(): value})


def _histogram(name: str, description: str, histogram: Histogram) -> MetricFamily:
    return MetricFamily(name, "histogram", description, (), {(): histogram.read()})
