"""What is counted, and that nothing is lost or counted twice."""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Iterator

import pytest
from event_samples import ONE_OF_EACH, finished, queued, started, step
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.observability import BaseFreed, Events, FirstToken, Metrics
from hivellm_ort.observability.histogram import Histogram


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def counted(*events: object) -> Metrics:
    """Metrics that were told these events."""
    metrics = Metrics()
    for event in events:
        metrics(event)  # type: ignore[arg-type]
    return metrics


def test_a_life_is_counted() -> None:
    """Each number of each event is found where it belongs."""
    seen = counted(*ONE_OF_EACH).snapshot()
    plain = {name: value for name, value in seen.items() if not name.endswith(("_seconds", "batch_rows"))}
    assert {
        "requests_total": {"sql": {"eos": 1}},
        "request_errors_total": {},
        "prompt_tokens_total": {"sql": 10},
        "cached_tokens_total": {"sql": 8},
        "completion_tokens_total": {"sql": 5},
        "forced_tokens_total": {"sql": 1},
        "accepted_tokens_total": {"sql": 2},
        "prefix_cache_hits_total": {"sql": 1},
        "swaps_total": {"sql": 1},
        "evictions_total": {"expert": {"count": 1}, "base": {"memory": 1}},
        "evicted_bytes_total": {"expert": 20, "base": 1000},
        "step_tokens_total": 5,
        "batch_row_slots_total": 4,
        "batch_occupancy_ratio": 0.75,
        "loaded_experts": 0,
        "loaded_bases": 0,
        "active_requests": 0,
        "queued_requests": 0,
    } == plain
    sums = {name: value["sum"] for name, value in seen.items() if name not in plain}
    assert {
        "time_to_first_token_seconds": 0.25,
        "inter_token_latency_seconds": 0.01,  # 0.04 s for the four tokens after the first
        "queue_time_seconds": 0.2,
        "swap_seconds": 0.0002,
        "step_seconds": 0.012,
        "batch_rows": 3.0,
    } == pytest.approx(sums)
    assert {1} == {value["count"] for name, value in seen.items() if name not in plain}


def test_gauges_follow_the_events() -> None:
    """Loaded, active and queued are what was begun and has not ended."""
    base, sql, other = ONE_OF_EACH[:3]
    seen = counted(base, sql, other, queued(), queued(), queued(), started()).snapshot()
    assert (2, 1) == (seen["loaded_experts"], seen["loaded_bases"])
    assert (1, 2) == (seen["active_requests"], seen["queued_requests"])


def test_requests_that_never_started() -> None:
    """A request that ends while it waits leaves the queue, and its wait counts."""
    gone = finished(finish_reason="cancelled", started=False, queued_seconds=3.0)
    seen = counted(queued(), queued(), started(seconds=1.0), gone).snapshot()
    assert (1, 0) == (seen["active_requests"], seen["queued_requests"])
    assert 4.0 == seen["queue_time_seconds"]["sum"]
    assert {"sql": {"cancelled": 1}} == seen["requests_total"]


def test_errors_are_requests_too() -> None:
    """An error is a finish reason, and is counted by its type."""
    seen = counted(finished(error="GrammarError"), finished(error="TimeoutError"), finished()).snapshot()
    assert {"sql": {"error": 2, "eos": 1}} == seen["requests_total"]
    assert {"GrammarError": 1, "TimeoutError": 1} == seen["request_errors_total"]


def test_single_tokens_have_no_latency_between_them() -> None:
    """An answer of one token, or none, says nothing about the time between tokens."""
    seen = counted(finished(completion_tokens=1, decode_seconds=0.5), finished()).snapshot()
    assert 0 == seen["inter_token_latency_seconds"]["count"]


def test_freed_bases_are_not_evicted() -> None:
    """A base that nobody uses any more did not have to make room."""
    loaded = ONE_OF_EACH[0]
    freed = BaseFreed(base="tiny", digest="b0", bytes=1000, reason="unused")
    seen = counted(loaded, freed).snapshot()
    assert (0, {}) == (seen["loaded_bases"], seen["evictions_total"])


def test_occupancy_weighs_passes_by_their_rows() -> None:
    """The ratio is that of all rows, not the mean of ratios."""
    seen = counted(step(rows=1, capacity=1), step(rows=1, capacity=7)).snapshot()
    assert 0.25 == seen["batch_occupancy_ratio"]


def test_snapshot_is_json() -> None:
    """A snapshot goes through JSON unchanged, empty or not, and does not change afterwards."""
    metrics = Metrics()
    empty = metrics.snapshot()
    assert empty == json.loads(json.dumps(empty, allow_nan=False))
    for event in ONE_OF_EACH:
        metrics(event)
    assert 0 == empty["time_to_first_token_seconds"]["count"]
    assert metrics.snapshot() == json.loads(json.dumps(metrics.snapshot(), allow_nan=False))


def test_experts_beyond_a_number_are_other() -> None:
    """200 experts and 200 types of errors are told apart; all that come later are one, and no request is lost."""
    metrics = Metrics()
    for _ in range(2):
        for number in range(300):
            metrics(finished(f"expert-{number}", error=f"Error{number}"))
    seen = metrics.snapshot()
    for counts in (seen["requests_total"], seen["prompt_tokens_total"], seen["request_errors_total"]):
        assert 201 == len(counts)
    assert {"error": 200} == seen["requests_total"]["other"]
    assert {"error": 2} == seen["requests_total"]["expert-199"]
    assert 200 == seen["request_errors_total"]["other"]


def test_eight_threads_lose_nothing(quick_switches: None) -> None:
    """8 threads with 10,000 events each, and a reader beside them, give exact totals."""
    metrics = Metrics()
    events = Events(metrics)
    running = threading.Event()
    running.set()

    def work(number: int) -> None:
        for _ in range(2000):
            events.emit(queued(f"expert-{number % 3}"))
            events.emit(started())
            events.emit(FirstToken(expert="sql", base="tiny", seconds=0.25))
            events.emit(step())
            events.emit(
                finished(f"expert-{number % 3}", prompt_tokens=7, completion_tokens=3, decode_seconds=2.0)
            )

    def read() -> None:
        while running.is_set():
            metrics.snapshot()

    reader = threading.Thread(target=read)
    reader.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.clear()
    reader.join()

    seen = metrics.snapshot()
    shares = {"expert-0": 6000, "expert-1": 6000, "expert-2": 4000}
    assert {name: {"eos": count} for name, count in shares.items()} == seen["requests_total"]
    assert {name: 7 * count for name, count in shares.items()} == seen["prompt_tokens_total"]
    assert (0, 0) == (seen["active_requests"], seen["queued_requests"])
    assert (64_000, 80_000) == (seen["batch_row_slots_total"], seen["step_tokens_total"])
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "queue_time_seconds",
        "batch_rows",
    ):
        assert 16_000 == seen[name]["count"], name
    assert 16_000.0 == seen["inter_token_latency_seconds"]["sum"]


def test_event_inside_an_event() -> None:
    """An event told in a thread that is counting, as a collected stream's is, neither blocks nor gets lost."""
    metrics = Metrics()

    class Name(str):
        """A name that tells an event when it is looked up."""

        told = False

        def __hash__(self) -> int:
            if not Name.told:
                Name.told = True
                metrics(finished("inner"))
            return super().__hash__()

    metrics(finished(Name("outer")))
    assert {"outer": {"eos": 1}, "inner": {"eos": 1}} == metrics.snapshot()["requests_total"]


def test_event_during_a_reading() -> None:
    """An event told while someone else counts or reads does not wait, and the next reading has it."""
    metrics = Metrics()
    with metrics._counting:
        metrics(finished())
    assert {"sql": {"eos": 1}} == metrics.snapshot()["requests_total"]


def test_buckets_hold_their_bound() -> None:
    """A value equal to a bound is in its bucket, a larger one in the next, and the last has no bound."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.1, 2.0, 2.1, 99.0):
        histogram.observe(value)
    assert ((1.0, 2), (2.0, 4), (float("inf"), 6)) == histogram.read().cumulative


def test_percentiles_of_nothing_and_of_one() -> None:
    """Without values there is no percentile; with one value it is every percentile."""
    histogram = Histogram((1.0, 2.0))
    assert histogram.read().percentile(0.5) is None
    histogram.observe(1.25)
    assert [1.25] * 3 == [histogram.read().percentile(share) for share in (0.5, 0.95, 0.99)]


def test_percentiles_of_known_values() -> None:
    """Evenly spread values give their percentiles, also beyond the last bound."""
    histogram = Histogram((10.0, 20.0, 50.0))
    for value in range(1, 101):
        histogram.observe(value)
    estimates = [histogram.read().percentile(share) for share in (0.05, 0.5, 0.95, 0.99, 1.0)]
    assert [5.5, 50.0, 95.0, 99.0, 100.0] == pytest.approx(estimates)


@given(st.lists(st.floats(1e-4, 100.0), min_size=20), st.floats(0.05, 0.99))
def test_percentiles_are_in_the_right_bucket(values: list[float], share: float) -> None:
    """An estimate lies in the bucket of the true percentile, within what was seen."""
    bounds = [2.0**power for power in range(-14, 8)]
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    reading = histogram.read()
    estimate = reading.percentile(share)
    assert estimate is not None
    assert min(values) <= estimate <= max(values)
    rank = max(share * len(values), 1e-9)
    true = sorted(values)[min(len(values), -int(-rank // 1)) - 1]
    assert true / 2 <= estimate <= true * 2
    assert statistics.fmean(values) * len(values) == pytest.approx(reading.sum)
