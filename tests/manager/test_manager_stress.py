"""Everything at once, from many threads: every answer is the one its package gives alone, and nothing is left."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from harness.clients import NAMES, Answers, Client, record
from managing import (
    STRESS,
    Recorder,
    Variants,
    adapters_alive,
    at_rest,
    managed,
    sessions_alive,
    together,
)
from support.running import Packages

THREADS = 16
REQUESTS = 200 if STRESS else 25


@pytest.fixture(scope="module")
def paths(packages: Packages, variants: Variants) -> dict[str, list[Path]]:
    """Two packages for each of three names, on two bases."""
    return {
        "one": [packages.lora, variants.make("expert-lora-b", factor=1.5)],
        "two": [packages.dora, packages.ia3],
        "three": [packages.short, variants.make("expert-other-b", "short", factor=0.5)],
    }


@pytest.fixture(scope="module")
def answers(packages: Packages, paths: dict[str, list[Path]]) -> Answers:
    """The answers of each package alone."""
    every = [path for two in paths.values() for path in two]
    return record(every, cache_dir=packages.cache, threads=1, trust="off")


@pytest.mark.parametrize(("seed", "budget"), [(1, None), (2, 1_500_000)])
def test_everything_at_once(
    packages: Packages,
    paths: dict[str, list[Path]],
    answers: Answers,
    seed: int,
    budget: int | None,
) -> None:
    """16 threads ask, cancel, replace, unload, load and pin; two experts fit, and in one run next to no bytes."""
    adapters, sessions = adapters_alive(), sessions_alive()
    recorder = Recorder()
    manager = managed(packages, max_loaded_experts=2, memory_budget=budget)
    manager.events.add(recorder)
    for name in NAMES:
        manager.load_expert(name, paths[name][0])
    clients = [Client(manager, answers, paths, 100 * seed + number) for number in range(THREADS)]
    calls = [partial(client.run, range(REQUESTS)) for client in clients]
    together(calls, seconds=2500 if STRESS else 200)
    assert [] == [line for client in clients for line in client.wrong]
    assert [] == [trace for client in clients for _, trace in client.failures.values()]
    assert sum(client.counts["finished"] for client in clients) > THREADS * REQUESTS / 4
    at_rest(manager)

    stats = manager.stats()
    assert stats["evictions"] > 10
    assert 0 == sum(base["active"] + base["queued"] for base in stats["bases"])
    assert 0 == sum(info.active for info in manager.list_loaded_experts())
    pinned = [info.name for info in manager.list_loaded_experts() if info.pins]
    assert [] == pinned
    assert stats["loaded_experts"] <= 2
    assert 0 == len(manager._registry._draining)
    if budget is not None:
        assert stats["bytes"] <= budget
    for base in manager._registry.bases():
        assert base.scheduler._running == set()
        assert base.scheduler._releases == []
        assert base.scheduler._decoder is None or base.scheduler._decoder._lengths == []
    counts = manager.metrics.snapshot()
    assert (0, 0) == (counts["active_requests"], counts["queued_requests"])
    assert recorder.counts["RequestQueued"] == recorder.counts["RequestFinished"]
    assert stats["loaded_experts"] == counts["loaded_experts"]
    assert len(stats["bases"]) == counts["loaded_bases"]

    manager.close()
    counts = manager.metrics.snapshot()
    assert (0, 0) == (counts["loaded_experts"], counts["loaded_bases"])
    left = recorder.counts["ExpertUnloaded"] + recorder.counts["ExpertEvicted"]
    assert recorder.counts["ExpertLoaded"] == left
    assert recorder.counts["BaseLoaded"] == recorder.counts["BaseFreed"]
    assert (adapters, sessions) == (adapters_alive(), sessions_alive())
