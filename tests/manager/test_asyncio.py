"""Many requests on one event loop: it goes on, tasks can be cancelled, and it may close in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.clients import PROMPTS
from managing import at_rest, managed, until
from support.running import PROMPT, Packages, slowed

from hivellm_ort import ExpertManager, InferenceResult, OptionError
from hivellm_ort.serving.generation import Step

LONG: dict[str, Any] = {"max_tokens": 400, "prompt_lookup": False, "processors": [slowed]}


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """A manager with experts of two bases; two experts fit into memory."""
    with managed(packages, max_loaded_experts=2) as manager:
        for name in ("lora", "dora", "short"):
            manager.load_expert(name, getattr(packages, name))
        yield manager


def _active(manager: ExpertManager) -> int:
    return sum(base["active"] + base["queued"] for base in manager.stats()["bases"])


def test_fifty_at_once(manager: ExpertManager) -> None:
    """Fifty answers on one loop are those of one after another, and the loop is not held up meanwhile."""
    requests = [(name, prompt) for name in ("lora", "dora", "short") for prompt in PROMPTS]
    requests = (requests * 3)[:50]
    expected = [manager.generate(*request, max_tokens=15).tokens for request in requests]
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def run() -> list[tuple[int, ...]]:
        ticking = asyncio.create_task(tick())
        calls = [manager.agenerate(*request, max_tokens=15) for request in requests]
        results = await asyncio.wait_for(asyncio.gather(*calls), 60)
        ticking.cancel()
        return [result.tokens for result in results]

    assert expected == asyncio.run(run())
    gaps.sort()
    # Threads take turns at Python code: a single gap may be a busy machine's, many would be ours.
    assert gaps[-1 - len(gaps) // 50] < 0.05
    at_rest(manager)
    assert 0 == sum(info.active for info in manager.list_loaded_experts())


def test_cancelled_tasks(manager: ExpertManager) -> None:
    """A task that is cancelled during preparation, waiting or running frees its resources."""

    async def run() -> None:
        tasks = [asyncio.create_task(manager.agenerate("lora", PROMPT, **LONG)) for _ in range(20)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        while _active(manager) < 12:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert {asyncio.CancelledError} == {type(result) for result in results}

    asyncio.run(run())
    until(lambda: _active(manager) == 0, seconds=5)
    at_rest(manager)
    assert [0, 0, 0] == [info.active for info in manager.list_loaded_experts()]
    assert 3 == manager.generate("lora", PROMPT, max_tokens=3).completion_tokens


def test_timeout_of_the_caller(manager: ExpertManager) -> None:
    """`asyncio.timeout` around an answer ends it."""

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await manager.agenerate("lora", PROMPT, **LONG)

    asyncio.run(run())
    until(lambda: _active(manager) == 0, seconds=5)


def test_loop_closed_in_the_middle(manager: ExpertManager) -> None:
    """If an event loop ends while its requests run, other requests are still answered, also on another loop."""
    loop = asyncio.new_event_loop()
    streams = [manager.agenerate_stream("lora", PROMPT, **LONG) for _ in range(3)]
    for stream in streams:
        assert isinstance(loop.run_until_complete(anext(stream)), str)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert 3 == _active(manager)
    expected = manager.generate("dora", PROMPT, max_tokens=10).tokens
    time.sleep(0.1)  # steps whose news nobody can be told
    assert expected == asyncio.run(manager.agenerate("dora", PROMPT, max_tokens=10)).tokens
    for stream in streams:
        stream.cancel()
    until(lambda: _active(manager) == 0, seconds=5)


def test_streams_of_dropped_tasks_end(manager: ExpertManager) -> None:
    """A stream without references releases its row while its event loop runs on."""

    async def run() -> None:
        stream = manager.agenerate_stream("lora", PROMPT, **LONG)
        await anext(stream)
        del stream
        while _active(manager):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_steps_are_the_answer(manager: ExpertManager) -> None:
    """Step by step a stream gives every token, and together the text, the reasoning and the probabilities."""

    async def run() -> tuple[list[Step], InferenceResult]:
        stream = manager.agenerate_stream("lora", PROMPT, max_tokens=15, logprobs=2)
        await stream.start()
        steps = []
        while (step := await stream.next_step()) is not None:
            steps.append(step)
        assert await stream.next_step() is None
        return steps, stream.result

    steps, result = asyncio.run(run())
    assert result.tokens == tuple(step.token_id for step in steps)
    assert result.logprobs == tuple(step.logprob for step in steps)
    assert (result.text, result.reasoning) == (
        "".join(step.text for step in steps),
        "".join(step.reasoning for step in steps),
    )
    assert [None] * 14 + ["length"] == [step.finish_reason for step in steps]


def test_start_tells_what_is_wrong(manager: ExpertManager) -> None:
    """`start` raises the errors of a request before anything is generated."""
    stream = manager.agenerate_stream("lora", PROMPT, temperature=-1)
    with pytest.raises(OptionError, match="temperature"):
        asyncio.run(stream.start())
    at_rest(manager)
