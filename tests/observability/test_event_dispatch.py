"""Events reach the hooks, and a broken hook harms nobody."""

from __future__ import annotations

import dataclasses
import logging
import threading
import typing

import pytest
from event_samples import ONE_OF_EACH, finished, queued, result, step

from hivellm_ort.observability import Event, Events, RequestFinished


def test_hooks_are_told_in_order() -> None:
    """Every hook gets every event, in the order in which hooks were added and events emitted."""
    told: list[tuple[str, Event]] = []
    events = Events(lambda event: told.append(("first", event)))
    events.add(lambda event: told.append(("second", event)))
    one, two = queued(), step()
    events.emit(one)
    events.emit(two)
    assert [("first", one), ("second", one), ("first", two), ("second", two)] == told


def test_add_and_remove() -> None:
    """A hook is there once however often it is added, is equal to itself as a method, and can be removed."""
    told: list[Event] = []
    events = Events(told.append)
    events.add(told.append)
    events.emit(queued())
    assert 1 == len(told)
    events.remove(told.append)
    events.remove(told.append)
    events.emit(queued())
    assert 1 == len(told)


def test_add_decorates() -> None:
    """`add` gives the function back."""
    events = Events()
    told = []

    @events.add
    def hook(event: Event) -> None:
        told.append(event)

    hook(queued())
    events.emit(step())
    assert [queued(), step()] == told


def test_hook_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A hook's error is logged once with its traceback, the emitter does not see it, later hooks are told."""
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("my dashboard is down")

    events = Events(broken, told.append)
    with caplog.at_level(logging.DEBUG, logger="hivellm_ort"):
        for _ in range(3):
            events.emit(step())
    assert 3 == len(told)
    assert [("hivellm_ort", logging.ERROR)] == [(record.name, record.levelno) for record in caplog.records]
    assert "my dashboard is down" in caplog.text
    assert "StepDone" in caplog.text


def test_each_broken_hook_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One hook's failure does not hide another's."""

    def broken(event: Event) -> None:
        raise RuntimeError("one")

    def broken_too(event: Event) -> None:
        raise ValueError("two")

    events = Events(broken, broken_too)
    events.emit(step())
    events.emit(step())
    assert ["one", "two"] == [str(record.exc_info[1]) for record in caplog.records if record.exc_info]


def test_interrupts_pass() -> None:
    """What is no Exception, such as the user's Ctrl+C, is not swallowed."""

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Events(interrupted).emit(step())


def test_hook_may_change_the_hooks() -> None:
    """A hook that removes itself, or adds another, does so from the next event on."""
    told: list[str] = []
    events = Events()

    def later(event: Event) -> None:
        told.append("later")

    def once(event: Event) -> None:
        told.append("once")
        events.remove(once)
        events.add(later)

    events.add(once)
    events.emit(step())
    assert ["once"] == told
    events.emit(step())
    assert ["once", "later"] == told


def test_hooks_change_while_events_are_emitted() -> None:
    """A hook that stays misses no event while other threads add and remove theirs."""
    told: list[Event] = []
    events = Events(told.append)

    def emit() -> None:
        for _ in range(1000):
            events.emit(step())

    def change() -> None:
        for _ in range(200):
            hook = events.add(lambda event: None)
            events.remove(hook)

    threads = [threading.Thread(target=target) for target in (emit, change, emit, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2000 == len(told)


def test_events_are_immutable_and_quote_nothing() -> None:
    """Events are frozen values of numbers, names and digests."""
    assert set(typing.get_args(Event)) == {type(event) for event in ONE_OF_EACH}
    for event in ONE_OF_EACH:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.base = "other"  # type: ignore[misc]
        names = {field.name for field in dataclasses.fields(event)}
        assert not {"path", "prompt", "text", "message"} & names, type(event).__name__


def test_finished_from_result() -> None:
    """The event made of a result has its numbers, and the name the expert is loaded under."""
    expected = finished(
        "sql",
        prompt_tokens=10,
        cached_tokens=8,
        completion_tokens=5,
        forced_tokens=1,
        accepted_tokens=2,
        queued_seconds=0.2,
        prefill_seconds=0.05,
        decode_seconds=0.04,
    )
    assert expected == RequestFinished.from_result(result(), expert="sql", base="tiny", queued_seconds=0.2)
