"""Experts come, go and change while they are asked; a manager closes in the middle of everything."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from pathlib import Path

import pytest
from harness.clients import PROMPTS
from managing import (
    Gate,
    Recorder,
    Variants,
    adapters_alive,
    at_rest,
    managed,
    sessions_alive,
    suppress_message,
    together,
    until,
)
from support.running import PROMPT, Packages, engine_of, engines, held, slowed

from hivellm_ort import Expert, InferenceError, LoadError, UnknownExpertError


def test_replacing_while_streams_run(packages: Packages) -> None:
    """A stream ends with the package it began with, the next one has the new package, and the old one is freed."""
    with managed(packages) as manager:
        manager.load_expert("one", packages.lora)
        manager.load_expert("two", packages.dora)
        first = manager.generate("one", PROMPT, max_tokens=40)
        second = manager.generate("two", PROMPT, max_tokens=40)
        gate = Gate()
        stream = manager.generate_stream("one", PROMPT, max_tokens=40, processors=[gate])
        assert gate.reached.wait(20)
        waiting = manager.generate_stream("one", PROMPT, max_tokens=40)
        old = weakref.ref(held(manager, "one").adapter)
        info = manager.load_expert("one", packages.dora, replace=True)
        assert "expert-dora" == info.package
        later = manager.generate_stream("one", PROMPT, max_tokens=40)
        assert 3 == sum(info.active for info in manager.list_loaded_experts()) + 2
        gate.open.set()
        texts = ["".join(one) for one in (stream, waiting, later)]
        assert [first.text, first.text, second.text] == texts
        packages_of = [one.result.expert for one in (stream, waiting, later)]
        assert ["expert-lora", "expert-lora", "expert-dora"] == packages_of
        at_rest(manager)
        assert old() is None  # although the streams are still here
        assert 2 == manager.stats()["loaded_experts"]


def test_replacing_with_the_same_package(packages: Packages) -> None:
    """The same package again is a new generation with the same answers; pins stay with the name."""
    with managed(packages) as manager:
        manager.load_expert("one", packages.lora)
        expected = manager.generate("one", PROMPT, max_tokens=20).tokens
        manager.pin("one")
        before = held(manager, "one")
        manager.load_expert("one", packages.lora, replace=True)
        assert held(manager, "one") is not before
        assert expected == manager.generate("one", PROMPT, max_tokens=20).tokens
        assert [1] == [info.pins for info in manager.list_loaded_experts()]
        manager.unpin("one")
        with pytest.raises(ValueError, match="'one' is not pinned"):
            manager.unpin("one")


def test_unloading_while_a_batch_waits(packages: Packages) -> None:
    """A batch whose prompts wait is answered to its end by the expert it was asked of; its name is gone at once."""
    with managed(packages) as manager:
        manager.load_expert("one", packages.lora)
        manager.load_expert("two", packages.dora)
        expected = [manager.generate("one", prompt, max_tokens=10).tokens for prompt in PROMPTS]
        gate = Gate()
        held_up = manager.generate_stream("two", PROMPT, max_tokens=2, processors=[gate])
        assert gate.reached.wait(20)
        answers: list[tuple[int, ...]] = []

        def ask() -> None:
            requests = [("one", prompt) for prompt in PROMPTS]
            results = manager.generate_batch(requests, max_tokens=10, batch_size=2)
            answers.extend(result.tokens for result in results)

        def unload() -> None:
            until(lambda: manager.list_loaded_experts()[0].active == len(PROMPTS))
            manager.unload_expert("one")
            with pytest.raises(UnknownExpertError):
                manager.generate("one", PROMPT)
            gate.open.set()

        together([ask, unload])
        assert expected == answers
        held_up.close()


def test_closing_while_everything_runs(packages: Packages) -> None:
    """Running, waiting and unread requests end as cancelled, and the manager frees all its memory."""
    adapters, sessions, bases = adapters_alive(), sessions_alive(), len(engines())
    manager = managed(packages)
    for name in ("lora", "dora", "short"):
        manager.load_expert(name, getattr(packages, name))
    streams = [
        manager.generate_stream(name, PROMPT, max_tokens=100, processors=[slowed])
        for name in ("lora", "dora", "short")
        for _ in range(9)
    ]
    batch: list[str] = []
    started = threading.Event()

    def ask() -> None:
        started.set()
        requests = [("lora", PROMPT)] * 20
        results = manager.generate_batch(requests, max_tokens=100, batch_size=2, processors=[[slowed]] * 20)
        batch.extend(result.finish_reason for result in results)

    def close() -> None:
        started.wait(10)
        until(lambda: next(info for info in manager.list_loaded_experts()).active == 29)
        prefixes = [weakref.ref(engine.prefixes) for engine in engines()]
        manager.close()
        assert (adapters, sessions, bases) == (adapters_alive(), sessions_alive(), len(engines()))
        assert [None] * len(prefixes) == [one() for one in prefixes]

    together([ask, close])
    assert {"cancelled"} == set(batch)
    assert {"cancelled"} == {stream.result.finish_reason for stream in streams}
    with pytest.raises(InferenceError, match="manager is closed"):
        manager.generate("lora", PROMPT)


def test_closing_while_others_begin(packages: Packages) -> None:
    """Requests and loads that race with `close()` end, cancelled or refused; after it nothing is in memory."""
    adapters, sessions = adapters_alive(), sessions_alive()
    for _ in range(5):
        manager = managed(packages, max_loaded_experts=1)
        manager.load_expert("one", packages.lora)
        manager.load_expert("two", packages.dora)
        barrier = threading.Barrier(9)

        def ask(name: str, manager=manager, barrier=barrier) -> None:
            barrier.wait(10)
            with suppress_message(InferenceError, "closed"):
                while True:
                    manager.generate(name, PROMPT, max_tokens=3)

        def load(manager=manager, barrier=barrier) -> None:
            barrier.wait(10)
            with suppress_message(InferenceError, "closed"):
                while True:
                    manager.load_expert("one", packages.lora, replace=True)

        def close(manager=manager, barrier=barrier) -> None:
            barrier.wait(10)
            manager.close()

        calls = [lambda n=n: ask(n) for n in ("one", "two") * 3]
        together([*calls, load, close, close])
        assert (adapters, sessions) == (adapters_alive(), sessions_alive())


def test_two_managers_and_an_expert_share_a_base(packages: Packages) -> None:
    """They share one engine; each may go without disturbing the others, and the last one frees it."""
    one, two = managed(packages), managed(packages)
    one.load_expert("a", packages.lora)
    two.load_expert("a", packages.dora)
    with packages.load("lora") as expert:
        assert engine_of(held(one, "a")) is engine_of(held(two, "a")) is engine_of(expert)
        engine = weakref.ref(engine_of(expert))
        expected = expert.generate(PROMPT, max_tokens=20).tokens
        other = two.generate("a", PROMPT, max_tokens=20).tokens
        recorder = Recorder()
        two.events.add(recorder)
        stream = two.generate_stream("a", PROMPT, max_tokens=20)
        one.close()
        assert other == tuple(stream.result.tokens if list(stream) else ())
        assert expected == expert.generate(PROMPT, max_tokens=20).tokens
        assert recorder.counts["StepDone"] > 0
    assert other == two.generate("a", PROMPT, max_tokens=20).tokens
    two.close()
    del expert
    until(lambda: sessions_alive() >= 0 and engine() is None)


def test_failed_loads_change_nothing(packages: Packages, variants: Variants, tmp_path: Path) -> None:
    """A package that is missing, broken, refused by its constraints or by a used name leaves all as it was."""
    needy = variants.make("expert-needy", constraints={"requires": ["expert-nobody"]})
    broken = tmp_path / "broken.expert"
    broken.write_bytes(packages.lora.read_bytes()[:5000])
    with managed(packages, max_loaded_experts=1) as manager:
        manager.load_expert("one", packages.lora)
        recorder = Recorder()
        manager.events.add(recorder)
        before = (manager.list_loaded_experts(), manager.stats(), adapters_alive())
        for name, path in (
            ("one", packages.dora),
            ("two", broken),
            ("two", tmp_path),
            ("one", needy),
            ("x", needy),
        ):
            with pytest.raises(LoadError):
                manager.load_expert(name, path, replace=path is needy)
        assert before == (manager.list_loaded_experts(), manager.stats(), adapters_alive())
        assert [] == recorder.events


def test_evicted_expert_whose_package_is_gone(packages: Packages, variants: Variants) -> None:
    """Asking it is an error and leaves the others alone; when the package is back it answers again."""
    path = variants.make("expert-gone", factor=2.0)
    with managed(packages, max_loaded_experts=1) as manager:
        manager.load_expert("gone", path)
        expected = manager.generate("gone", PROMPT, max_tokens=10).tokens
        manager.load_expert("two", packages.dora)
        other = manager.generate("two", PROMPT, max_tokens=10).tokens
        away = path.rename(path.with_name("away"))
        calls = (manager.generate, manager.generate_stream, lambda name, _: manager.pin(name))
        for call in calls:
            with pytest.raises(LoadError):
                call("gone", PROMPT)
        gone, two = manager.list_loaded_experts()
        assert (False, 0, 0) == (gone.loaded, gone.active, gone.pins)
        assert (True, 0, 1) == (two.loaded, two.active, two.hits)
        assert other == manager.generate("two", PROMPT, max_tokens=10).tokens
        away.rename(path)
        assert expected == manager.generate("gone", PROMPT, max_tokens=10).tokens
        assert [True, False] == [info.loaded for info in manager.list_loaded_experts()]


def test_evicted_expert_whose_package_was_changed(packages: Packages, variants: Variants) -> None:
    """It is not taken for the one that was loaded: that needs `replace=True`."""
    path, other = variants.make("expert-changing"), variants.make("expert-changing", factor=3.0)
    with managed(packages, max_loaded_experts=1) as manager:
        manager.load_expert("one", path)
        before = manager.generate("one", PROMPT, max_tokens=10).tokens
        manager.load_expert("two", packages.dora)
        shutil.copytree(other, path, dirs_exist_ok=True)
        with pytest.raises(LoadError, match="was changed since it was loaded"):
            manager.generate("one", PROMPT)
        manager.load_expert("one", path, replace=True)
        assert before != manager.generate("one", PROMPT, max_tokens=10).tokens
        manifest = json.loads((path / "manifest.json").read_text())
        manager.generate("two", PROMPT, max_tokens=1)
        (path / "manifest.json").write_text(json.dumps(manifest | {"version": "2.0.0"}))
        with pytest.raises(LoadError, match="was changed since it was loaded"):
            manager.generate("one", PROMPT)


def test_pins(packages: Packages) -> None:
    """A pinned expert is loaded if needed and stays; others are evicted. Pinning does not count as a request."""
    with managed(packages, max_loaded_experts=1) as manager:
        for name in ("lora", "dora", "ia3"):
            manager.load_expert(name, getattr(packages, name))
        manager.pin("lora")
        manager.pin("lora")
        for name in ("dora", "ia3"):
            manager.generate(name, PROMPT, max_tokens=2)
        at_rest(manager)
        infos = {info.name: info for info in manager.list_loaded_experts()}
        assert [True, False, False] == [info.loaded for info in infos.values()]
        assert [0, 1, 1] == [info.hits for info in infos.values()]
        manager.unpin("lora")
        manager.generate("dora", PROMPT, max_tokens=2)
        at_rest(manager)
        assert [True, False, False] == [info.loaded for info in manager.list_loaded_experts()]
        manager.unpin("lora")
        manager.generate("dora", PROMPT, max_tokens=2)
        at_rest(manager)
        assert [False, True, False] == [info.loaded for info in manager.list_loaded_experts()]


def test_a_refused_batch_holds_nothing(packages: Packages) -> None:
    """If a batch is refused, its prepared requests are released, and the manager can be closed."""
    manager = managed(packages)
    manager.load_expert("one", packages.lora)
    recorder = Recorder()
    manager.events.add(recorder)
    with pytest.raises(ValueError, match="batch_size"):
        manager.generate_batch([("one", PROMPT)] * 3, batch_size=0)
    with pytest.raises(UnknownExpertError):
        manager.generate_batch([("one", PROMPT), ("two", PROMPT)])
    with pytest.raises(ValueError, match="top_p"):
        manager.generate_batch([("one", PROMPT)] * 2, top_p=[0.5, 7])
    assert [0] == [info.active for info in manager.list_loaded_experts()]
    assert recorder.counts["RequestQueued"] == recorder.counts["RequestFinished"] > 0
    together([manager.close])


def test_finished_streams_keep_no_adapter(packages: Packages) -> None:
    """Whoever keeps the streams of an evicted expert keeps their text, and not its weights."""
    with managed(packages, max_loaded_experts=1) as manager:
        manager.load_expert("one", packages.lora)
        stream = manager.generate_stream("one", PROMPT, max_tokens=5)
        text = "".join(stream)
        adapter = weakref.ref(held(manager, "one").adapter)
        manager.load_expert("two", packages.dora)
        at_rest(manager)
        assert adapters_alive() == 1
        assert adapter() is None
        assert text == stream.result.text


def test_asking_an_expert_under_its_manager(packages: Packages) -> None:
    """An `Expert` of its own beside a manager of the same package answers the same, together with it."""
    with managed(packages) as manager, packages.load("lora") as expert:
        manager.load_expert("one", packages.lora)
        expected = expert.generate(PROMPT, max_tokens=30).tokens
        answers: list[tuple[int, ...]] = []

        def ask(one: Expert | None) -> None:
            result = (
                one.generate(PROMPT, max_tokens=30) if one else manager.generate("one", PROMPT, max_tokens=30)
            )
            answers.append(result.tokens)

        together([lambda one=one: ask(one) for one in (expert, None) * 5])
        assert [expected] * 10 == answers
