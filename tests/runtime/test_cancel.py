"""Cancelling a generation: from another thread, from another task, in a batch."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from support.running import PROMPT, active, slowed

from hivellm_ort import Expert

OPTIONS: dict[str, Any] = {"max_tokens": 400, "prompt_lookup": False}


def test_from_another_thread(lora: Expert) -> None:
    """The iteration ends within one step of `cancel()`, and the row is free."""
    stream = lora.generate_stream(PROMPT, processors=[slowed], **OPTIONS)
    timer = threading.Timer(0.1, stream.cancel)
    begin = time.perf_counter()
    timer.start()
    pieces = list(stream)
    assert time.perf_counter() - begin < 2  # 400 steps take 4 seconds
    result = stream.result
    assert "cancelled" == result.finish_reason
    assert 1 <= result.completion_tokens < 400
    assert "".join(pieces) == result.text
    expected = lora.generate(PROMPT, **OPTIONS).tokens
    assert expected[: result.completion_tokens] == result.tokens
    assert 0 == active(lora)


def test_close_from_another_thread_waits_for_the_step(lora: Expert) -> None:
    """`close()` returns when the row is free, also while another thread is in the middle of a step."""
    stream = lora.generate_stream(PROMPT, processors=[slowed], **OPTIONS)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    time.sleep(0.05)
    stream.close()
    assert 0 == active(lora)
    assert "cancelled" == stream.result.finish_reason
    reader.join(5)
    assert not reader.is_alive()


def test_cancel_before_the_first_piece(lora: Expert) -> None:
    """A request cancelled before it began reads nothing."""
    stream = lora.generate_stream(PROMPT, **OPTIONS)
    stream.cancel()
    assert [] == list(stream)
    result = stream.result
    assert ("cancelled", 0, "") == (result.finish_reason, result.completion_tokens, result.text)


def test_a_row_of_a_batch(lora: Expert) -> None:
    """A cancelled row leaves; the others answer as alone."""
    expected = lora.generate_batch([PROMPT, "count"], max_tokens=30, prompt_lookup=False)
    streams = [
        lora.generate_stream(prompt, max_tokens=30, prompt_lookup=False, processors=[slowed])
        for prompt in (PROMPT, "count", "a")
    ]
    next(streams[2])
    streams[2].close()
    assert [] != list(streams[0])
    assert [] != list(streams[1])
    assert [one.tokens for one in expected] == [one.result.tokens for one in streams[:2]]
    assert "cancelled" == streams[2].result.finish_reason
    assert 0 < streams[2].result.completion_tokens < 30


def test_event_loop_goes_on(lora: Expert) -> None:
    """While an answer is awaited other tasks run, and two answers at once are those of one alone."""

    async def run() -> tuple[int, list[Any]]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        answers = [lora.agenerate(prompt, processors=[slowed], max_tokens=20) for prompt in (PROMPT, "count")]
        results = await asyncio.gather(*answers)
        ticking.cancel()
        return ticks, [result.tokens for result in results]

    ticks, tokens = asyncio.run(run())
    assert ticks > 10
    assert [lora.generate(prompt, max_tokens=20).tokens for prompt in (PROMPT, "count")] == tokens


def test_cancelled_task(lora: Expert) -> None:
    """Cancelling the task that waits ends the generation within a step."""

    async def run() -> None:
        task = asyncio.create_task(lora.agenerate(PROMPT, processors=[slowed], **OPTIONS))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begin = time.perf_counter()
    asyncio.run(run())
    deadline = begin + 2
    while active(lora) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert 0 == active(lora)


def test_async_stream_left_early(lora: Expert) -> None:
    """Leaving the block closes, and what was generated is the result."""

    async def run() -> tuple[str, Any]:
        async with lora.agenerate_stream(PROMPT, **OPTIONS) as stream:
            piece = await anext(stream)
        return piece, stream.result

    piece, result = asyncio.run(run())
    assert "cancelled" == result.finish_reason
    assert result.text.startswith(piece)
