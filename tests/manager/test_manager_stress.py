"""Everything at once, from many threads: every answer is the one its package gives alone, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from managing import (
    PROMPTS,
    STRESS,
    Recorder,
    Variants,
    adapters_alive,
    at_rest,
    managed,
    sessions_alive,
    solo,
    suppress_message,
    together,
)
from running import Packages

from hivellm_ort import ExpertManager, InferenceResult, LoadError, UnknownExpertError

THREADS = 16
REQUESTS = 200 if STRESS else 25
TOKENS = 20
NAMES = ("one", "two", "three")


class Client:
    """One thread's random requests, of all kinds, to three names whose packages change."""

    def __init__(
        self,
        manager: ExpertManager,
        expected: dict[str, dict[str, tuple[int, ...]]],
        paths: dict[str, list[Path]],
        seed: int,
    ):
        self._manager, self._expected, self._paths = manager, expected, paths
        self._draw = random.Random(seed)
        self.completed = self.cancelled = self.refused = 0

    def run(self) -> None:
        """Make the requests."""
        kinds = [*[self._generate] * 6, *[self._stream] * 5, *[self._batch] * 2, self._await]
        kinds += [self._replace, self._reload, self._pin]
        for _ in range(REQUESTS):
            self._attempt(self._draw.choice(kinds))

    def _attempt(self, kind: Callable[[str], None]) -> None:
        try:
            kind(self._draw.choice(NAMES))
        except UnknownExpertError:  # another thread has unloaded it and not loaded it again yet
            self.refused += 1

    def _generate(self, name: str) -> None:
        prompt, tokens = self._draw.choice(PROMPTS), self._draw.randint(1, TOKENS)
        timeout = self._draw.choice([None, None, None, 0.005])
        result = self._manager.generate(name, prompt, max_tokens=tokens, timeout=timeout)
        self._check(result, prompt, tokens)

    def _stream(self, name: str) -> None:
        prompt = self._draw.choice(PROMPTS)
        stream = self._manager.generate_stream(name, prompt, max_tokens=TOKENS)
        if self._draw.random() < 0.5:
            pieces = list(stream)
            assert "".join(pieces) == stream.result.text
        elif self._draw.random() < 0.5:
            for _ in range(self._draw.randint(0, 3)):
                next(stream, None)
            stream.close()
        else:
            return  # and nobody looks at it again
        self._check(stream.result, prompt, TOKENS)

    def _batch(self, name: str) -> None:
        requests = [(self._draw.choice([name, *NAMES]), self._draw.choice(PROMPTS)) for _ in range(4)]
        size = self._draw.choice([2, 8])
        results = self._manager.generate_batch(requests, max_tokens=TOKENS, batch_size=size)
        for (_, prompt), result in zip(requests, results, strict=True):
            self._check(result, prompt, TOKENS)

    def _await(self, name: str) -> None:
        prompts = self._draw.sample(PROMPTS, 2)

        async def both() -> list[InferenceResult]:
            calls = [self._manager.agenerate(name, prompt, max_tokens=TOKENS) for prompt in prompts]
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return results

        for prompt, result in zip(prompts, asyncio.run(both()), strict=True):
            self._check(result, prompt, TOKENS)

    def _replace(self, name: str) -> None:
        self._manager.load_expert(name, self._draw.choice(self._paths[name]), replace=True)

    def _reload(self, name: str) -> None:
        self._manager.unload_expert(name)
        path = self._draw.choice(self._paths[name])
        with suppress_message(LoadError, "already"):  # another thread was quicker
            self._manager.load_expert(name, path)

    def _pin(self, name: str) -> None:
        self._manager.pin(name)
        self._generate(name)
        with suppress_message(ValueError, "not pinned"):  # unloaded and loaded meanwhile
            self._manager.unpin(name)

    def _check(self, result: InferenceResult, prompt: str, tokens: int) -> None:
        """What was generated is what the package that the answer names says to the prompt."""
        expected = self._expected[result.expert][prompt][:tokens]
        if result.finish_reason == "cancelled":
            self.cancelled += 1
            assert expected[: len(result.tokens)] == result.tokens
        else:
            self.completed += 1
            assert expected == result.tokens


@pytest.fixture(scope="module")
def paths(packages: Packages, variants: Variants) -> dict[str, list[Path]]:
    """Two packages for each of three names, on two bases."""
    return {
        "one": [packages.lora, variants.make("expert-lora-b", factor=1.5)],
        "two": [packages.dora, packages.ia3],
        "three": [packages.short, variants.make("expert-other-b", "short", factor=0.5)],
    }


@pytest.fixture(scope="module")
def expected(packages: Packages, paths: dict[str, list[Path]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """What each package answers alone, by the name of its manifest."""
    names = (
        ("expert-lora", "expert-lora-b"),
        ("expert-dora", "expert-ia3"),
        ("expert-other", "expert-other-b"),
    )
    every = [path for two in paths.values() for path in two]
    answers = [solo(path, packages, TOKENS) for path in every]
    assert len(answers) == len({answer[PROMPTS[0]] for answer in answers})
    return dict(zip([name for two in names for name in two], answers, strict=True))


@pytest.mark.parametrize(("seed", "budget"), [(1, None), (2, 1_500_000)])
def test_everything_at_once(
    packages: Packages,
    paths: dict[str, list[Path]],
    expected: dict[str, dict[str, tuple[int, ...]]],
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
    clients = [Client(manager, expected, paths, 100 * seed + number) for number in range(THREADS)]
    together([partial(client.run) for client in clients], seconds=2500 if STRESS else 200)
    assert sum(client.completed for client in clients) > THREADS * REQUESTS / 4
    at_rest(manager)

    stats = manager.stats()
    assert stats["evictions"] > 10
    assert 0 == sum(base["active"] + base["queued"] for base in stats["bases"])
    assert 0 == sum(info.active for info in manager.list_loaded_experts())
    pinned = [info.name for info in manager.list_loaded_experts() if info.pins]
    assert [] == pinned
    assert stats["loaded_experts"] <= 2
    assert 0 == len(manager._residents._leaving)
    if budget is not None:
        assert stats["bytes"] <= budget
    for base in manager._residents.bases():
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
