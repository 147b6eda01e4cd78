"""The states of a generation, who is told of them, and that it lets go of what it had."""

from __future__ import annotations

import time
from typing import Any

import pytest
from looping import Letters, Model, generation

from hivellm_ort import InferenceError, OptionError
from hivellm_ort.serving.generation import Generation, Status, Step
from hivellm_ort.serving.loop import Loop
from hivellm_ort.serving.request import GenerationRequest


class Told:
    """Notes what it is told, with the status at that moment."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Status, bool]] = []

    def started(self, generation: Generation) -> None:
        """See `Subscriber`."""
        self.calls.append(("started", generation.status, generation.ended))

    def first_token(self, generation: Generation) -> None:
        """See `Subscriber`."""
        self.calls.append(("first_token", generation.status, generation.ended))

    def ended(self, generation: Generation) -> None:
        """See `Subscriber`."""
        self.calls.append(("ended", generation.status, generation.ended))


def finished(one: Generation, likes: str = "b") -> Generation:
    """Run it to its end, as a scheduler does."""
    one.start()
    loop = Loop(Model(lambda text: likes))
    steps = loop.begin(one)
    while True:
        for running, step in steps:
            running.add(step, time.perf_counter())
        if not loop.active:
            return one
        steps = loop.step()


def test_a_life() -> None:
    """It waits, runs and finishes; subscribers hear of each once, of the end before whoever waits for it."""
    one, told = generation("a", max_tokens=3), Told()
    one.subscribe(told)
    assert Status.WAITING is one.status
    finished(one)
    assert [
        ("started", Status.RUNNING, False),
        ("first_token", Status.RUNNING, False),
        ("ended", Status.FINISHED, False),
    ] == told.calls
    assert one.ended
    assert ("bbb", "length", 3) == (
        one.result().text,
        one.result().finish_reason,
        one.result().completion_tokens,
    )


def test_cancelled_before_its_turn() -> None:
    """It was never started, and has no first token."""
    one, told = generation("a"), Told()
    one.subscribe(told)
    one.end_before_start()
    assert [("ended", Status.CANCELLED, False)] == told.calls
    assert "cancelled" == one.result().finish_reason
    assert one.wait()


def test_failed_before_its_turn() -> None:
    """What it failed with is what its result raises."""
    one = generation("a")
    one.end_before_start(InferenceError("the base was closed"))
    assert Status.FAILED is one.status
    with pytest.raises(InferenceError, match="was closed"):
        one.result()


def test_cancel_and_timeout() -> None:
    """Both are seen at once; a number of seconds that is not above 0 is refused."""
    one = generation("a")
    assert not one.cancelled
    one.cancel()
    assert one.cancelled
    fields: dict[str, Any] = {"prompt_ids": [97], "max_tokens": 1, "eos_token_ids": {0}}
    late = Generation(GenerationRequest(**fields, timeout=1e-9), answer=one.answer)
    time.sleep(0.001)
    assert late.cancelled
    with pytest.raises(OptionError, match="timeout"):
        Generation(GenerationRequest(**fields, timeout=0.0), answer=one.answer)


def test_no_result_before_the_end() -> None:
    """The result of a generation that goes on is an error, not a part of the answer."""
    one = generation("a")
    one.start()
    one.add(Step(98, "b"), time.perf_counter())
    with pytest.raises(InferenceError, match="has not ended"):
        one.result()
    assert not one.wait(0.01)


def test_whoever_keeps_an_answer_keeps_no_expert() -> None:
    """After the end neither the adapter nor the subscribers are held."""
    adapter: Any = object()
    one = generation("a", max_tokens=1, adapter=adapter)
    one.subscribe(Told())
    finished(one)
    assert (None, []) == (one.adapter, one._subscribers)


def test_what_is_asked_does_not_change() -> None:
    """A request is frozen, and its options are those that are used."""
    one = generation("a", max_tokens=2)
    with pytest.raises(AttributeError):
        one.request.max_tokens = 3  # type: ignore[misc]
    assert {"temperature": 0.0, "max_tokens": 2}.items() <= one.request.options.items()
    assert Letters().encode("a") == list(one.request.prompt_ids)
