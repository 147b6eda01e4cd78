"""What event hooks may do to the manager that calls them: everything that does not wait for an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from managing import Recorder, at_rest, managed, together, until
from support.running import PROMPT, Packages, slowed

from hivellm_ort import ExpertManager, InferenceError, TextStream
from hivellm_ort.observability import (
    Event,
    ExpertEvicted,
    FirstToken,
    RequestFinished,
    RequestQueued,
    StepDone,
)


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """A manager with experts of two bases."""
    with managed(packages) as manager:
        for name in ("lora", "dora", "short"):
            manager.load_expert(name, getattr(packages, name))
        yield manager


def test_unloading_in_a_hook(manager: ExpertManager) -> None:
    """The expert that answers, and one of the same base, are unloaded by the thread that answers."""
    expected = manager.generate("lora", PROMPT, max_tokens=20).tokens

    def unload(event: Event) -> None:
        if isinstance(event, FirstToken) and event.expert == "lora":
            manager.unload_expert("lora")
            manager.unload_expert("dora")

    manager.events.add(unload)
    results: list[tuple[int, ...]] = []
    together([lambda: results.append(manager.generate("lora", PROMPT, max_tokens=20).tokens)])
    assert [expected] == results
    at_rest(manager)
    assert ["short"] == [info.name for info in manager.list_loaded_experts()]
    assert ["small"] == [base["name"] for base in manager.stats()["bases"]]
    assert 1 == manager.stats()["loaded_experts"]


def test_two_bases_unload_each_other(packages: Packages) -> None:
    """Two listeners in the threads of two bases, each unloading an expert of the other base, do not deadlock."""
    for _ in range(10):
        with managed(packages) as manager:
            for name in ("lora", "short"):
                manager.load_expert(name, getattr(packages, name))
            pairs = {"lora": "short", "short": "lora"}
            spares = {name: f"{name} spare" for name in pairs}
            for name, spare in spares.items():
                manager.load_expert(spare, getattr(packages, name))
                manager.generate(spare, PROMPT, max_tokens=2)

            def unload(event: Event, manager=manager, pairs=pairs, spares=spares) -> None:
                if isinstance(event, FirstToken) and event.expert in pairs:
                    manager.unload_expert(spares[pairs[event.expert]])

            manager.events.add(unload)
            together([lambda n=n, m=manager: m.generate(n, PROMPT, max_tokens=5) for n in pairs], seconds=30)
            assert 2 == len(manager.list_loaded_experts())


def test_beginning_in_a_hook(manager: ExpertManager) -> None:
    """A hook may begin a stream for somebody else to read."""
    streams: list[TextStream] = []

    def begin(event: Event) -> None:
        if isinstance(event, RequestFinished) and len(streams) < 3:
            streams.append(manager.generate_stream("dora", PROMPT, max_tokens=5))

    manager.events.add(begin)
    manager.generate("lora", PROMPT, max_tokens=5)
    until(lambda: len(streams) == 3)
    texts = {"".join(stream) for stream in streams}
    assert {manager.generate("dora", PROMPT, max_tokens=5).text} == texts


def test_waiting_in_a_hook(manager: ExpertManager) -> None:
    """A listener that waits for an answer, or closes the manager, would wait for itself. It is refused."""
    stream = manager.generate_stream("lora", PROMPT, max_tokens=200, processors=[slowed])
    calls = [
        lambda: manager.generate("dora", PROMPT),
        lambda: manager.generate_batch([("dora", PROMPT)] * 2),
        lambda: next(stream),
        stream.close,
        manager.close,
    ]
    errors: list[str] = []

    def wait(event: Event) -> None:
        if isinstance(event, FirstToken):
            for call in calls:
                try:
                    call()
                except InferenceError as error:
                    errors.append(str(error))

    manager.events.add(wait)
    together([lambda: list(stream)])
    assert 5 == len(errors)
    assert all("must not wait for an answer" in error for error in errors)
    manager.events.remove(wait)
    at_rest(manager)
    assert [0, 0, 0] == [info.active for info in manager.list_loaded_experts()]
    assert 5 == manager.generate("dora", PROMPT, max_tokens=5).completion_tokens


def test_waiting_while_asking(manager: ExpertManager) -> None:
    """A hook of `RequestQueued`, in the thread that asks, can no more close or ask and wait than one of an answer."""
    errors: list[str] = []

    def wait(event: Event) -> None:
        if isinstance(event, RequestQueued):
            for call in (manager.close, lambda: manager.generate_stream("short", PROMPT).close()):
                try:
                    call()
                except InferenceError as error:
                    errors.append(str(error))

    expected = manager.generate("lora", PROMPT, max_tokens=5).tokens
    manager.events.add(lambda event: None if errors else wait(event))
    results: list[tuple[int, ...]] = []
    together([lambda: results.append(manager.generate("lora", PROMPT, max_tokens=5).tokens)])
    assert [expected] == results
    assert all("must not wait for an answer" in error for error in errors)
    assert errors
    at_rest(manager)


def test_changing_in_a_hook_of_loading(packages: Packages) -> None:
    """Listeners of loads and evictions may list, unload and start requests. Events stay in order."""
    with managed(packages, max_loaded_experts=1) as manager:
        recorder, answers = Recorder(), []

        def react(event: Event) -> None:
            manager.stats()
            if isinstance(event, ExpertEvicted):
                answers.append(manager.generate("short", PROMPT, max_tokens=2).tokens)
                manager.unload_expert("short")

        manager.load_expert("short", packages.short)
        expected = manager.generate("short", PROMPT, max_tokens=2).tokens
        manager.events.add(recorder)
        manager.events.add(react)
        together([lambda: manager.load_expert("lora", packages.lora)])
        at_rest(manager)
        assert [expected] == answers
        assert ["lora"] == [info.name for info in manager.list_loaded_experts()]
    loads, leaves = recorder.counts["ExpertLoaded"], recorder.counts["ExpertUnloaded"]
    assert loads + 1 == leaves + recorder.counts["ExpertEvicted"]
    assert (0, 0) == tuple(manager.metrics.snapshot()[name] for name in ("loaded_experts", "loaded_bases"))


def test_raising_hook(manager: ExpertManager) -> None:
    """A hook that raises on everything changes no answer, and requests are still counted."""
    expected = manager.generate("lora", PROMPT, max_tokens=5).tokens

    def fail(event: Event) -> None:
        raise RuntimeError(type(event).__name__)

    recorder = Recorder()
    manager.events.add(fail)
    manager.events.add(recorder)
    assert expected == manager.generate("lora", PROMPT, max_tokens=5).tokens
    kinds = ("RequestQueued", "RequestStarted", "FirstToken", "RequestFinished")
    assert list(kinds) == recorder.kinds(*kinds)
    assert isinstance(recorder.events[0], RequestQueued)


def test_tokens_read(manager: ExpertManager) -> None:
    """Forward passes read the uncached prompt tokens, and every token of the answer but the last."""
    recorder = Recorder()
    manager.events.add(recorder)
    results = [manager.generate("lora", PROMPT, max_tokens=9, prompt_lookup=False) for _ in range(2)]
    at_rest(manager)
    read = sum(event.tokens for event in recorder.events if isinstance(event, StepDone))
    assert read == sum(result.prompt_tokens - result.cached_tokens + 8 for result in results)
    assert manager.metrics.snapshot()["step_tokens_total"] == read
