"""Experts by name on shared bases."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
from support.running import PROMPT, Packages, engine_of, engines, held

from hivellm_ort import ExpertManager, InferenceError, LoadError, UnknownExpertError


@pytest.fixture
def manager(packages: Packages) -> ExpertManager:
    """An empty manager on the cache of the packages."""
    return ExpertManager(cache_dir=packages.cache, threads=1)


def test_experts_of_one_base_share_an_engine(packages: Packages, manager: ExpertManager) -> None:
    """Two experts of a base are on one engine, one of another base is not."""
    with manager:
        for name, path in (("one", packages.lora), ("two", packages.dora), ("other", packages.short)):
            manager.load_expert(name, path)
        one, two, other = (held(manager, name) for name in ("one", "two", "other"))
        assert engine_of(one) is engine_of(two)
        assert engine_of(one) is not engine_of(other)
        assert 1 == engines().count(engine_of(one))


def test_unloading_one_keeps_the_others(packages: Packages, manager: ExpertManager) -> None:
    """The base stays as long as one of its experts, and its memory is free when the last is gone."""
    manager.load_expert("one", packages.lora)
    one = held(manager, "one")
    manager.load_expert("two", packages.dora)
    expected = manager.generate("two", PROMPT, max_tokens=20).tokens
    engine = engine_of(one)
    (model_session,) = engine._sessions.values()
    alive = weakref.ref(model_session)
    del model_session
    manager.unload_expert("one")
    assert engine in engines()
    assert expected == manager.generate("two", PROMPT, max_tokens=20).tokens
    manager.unload_expert("two")
    assert engine not in engines()
    del one
    gc.collect()
    assert alive() is None


def test_swapping_back_and_forth(packages: Packages, manager: ExpertManager) -> None:
    """Whatever ran before on the shared row, an expert answers as the first time."""
    paths = {"lora": packages.lora, "dora": packages.dora, "ia3": packages.ia3}
    with manager:
        first = {}
        for name, path in paths.items():
            manager.load_expert(name, path)
            first[name] = manager.generate(name, PROMPT, max_tokens=30)
        assert 3 == len({result.tokens for result in first.values()})
        for name in ["lora", "dora", "lora", "lora", "ia3", "dora", "ia3", "lora"]:
            result = manager.generate(name, PROMPT, max_tokens=30)
            assert (first[name].tokens, first[name].text) == (result.tokens, result.text)
            assert f"expert-{name}" == result.expert
        stream = manager.generate_stream("dora", PROMPT, max_tokens=30)
        assert first["dora"].text == "".join(stream)


def test_loading_again_after_unloading(packages: Packages, manager: ExpertManager) -> None:
    """A name is free again, and the expert answers as before."""
    with manager:
        manager.load_expert("one", packages.lora)
        expected = manager.generate("one", PROMPT, max_tokens=20).tokens
        manager.unload_expert("one")
        manager.load_expert("one", packages.lora)
        assert expected == manager.generate("one", PROMPT, max_tokens=20).tokens


def test_list(packages: Packages, manager: ExpertManager) -> None:
    """Loaded experts are listed in the order of loading, with their distinguishing fields."""
    assert [] == manager.list_loaded_experts()
    with manager:
        for name, path in (("b", packages.dora), ("a", packages.merged), ("c", packages.ia3)):
            manager.load_expert(name, path)
        infos = manager.list_loaded_experts()
        assert [("b", "expert-dora"), ("a", "expert-dora"), ("c", "expert-ia3")] == [
            (info.name, info.package) for info in infos
        ]
        assert [("dora", 4), ("merged", 0), ("ia3", 1)] == [(info.kind, info.rank) for info in infos]
        assert {"tiny"} == {info.base for info in infos}
        assert {"1.0.0"} == {info.version for info in infos}
        assert infos[0].base_sha256 == infos[2].base_sha256 != infos[1].base_sha256
        assert 0 == infos[1].adapter_bytes
        # A [K, 4] and B [4, N] of the three modules in each of two layers, and little more.
        floats = 2 * 4 * ((32 + 64) + (32 + 32) + (32 + 32))
        assert 4 * floats < infos[0].adapter_bytes < 2 * 4 * floats
    assert [] == manager.list_loaded_experts()


def test_unknown_name(packages: Packages, manager: ExpertManager) -> None:
    """The message lists what is loaded; the error is a LookupError too."""
    with pytest.raises(UnknownExpertError, match="'sql'; loaded are: none"):
        manager.generate("sql", PROMPT)
    with manager:
        manager.load_expert("one", packages.lora)
        manager.load_expert("two", packages.dora)
        calls = (
            lambda: manager.generate("sql", PROMPT),
            lambda: manager.generate_stream("sql", PROMPT),
            lambda: manager.unload_expert("sql"),
        )
        for call in calls:
            with pytest.raises(LookupError, match="'sql'; loaded are: 'one', 'two'"):
                call()


def test_used_name(packages: Packages, manager: ExpertManager) -> None:
    """A name that is taken stays with the expert that has it."""
    with manager:
        manager.load_expert("one", packages.lora)
        first = held(manager, "one")
        with pytest.raises(LoadError, match="'one' already"):
            manager.load_expert("one", packages.dora)
        assert ["expert-lora"] == [info.package for info in manager.list_loaded_experts()]
        assert [engine_of(first)] == [engine for engine in engines() if engine is engine_of(first)]


def test_same_name_from_several_threads(packages: Packages, manager: ExpertManager) -> None:
    """Of four threads that load under one name one wins, and the others leave nothing loaded."""
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        try:
            manager.load_expert("one", packages.short)
        except LoadError:
            outcomes.append("refused")
        else:
            outcomes.append("loaded")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ["loaded", "refused", "refused", "refused"] == sorted(outcomes)
    engine = engine_of(held(manager, "one"))
    manager.close()
    assert engine not in engines()


def test_failed_load_takes_no_name(packages: Packages, manager: ExpertManager, tmp_path: Path) -> None:
    """After a package that cannot be loaded the name is free."""
    with manager:
        with pytest.raises(LoadError, match=r"neither a \.expert file nor a folder"):
            manager.load_expert("one", tmp_path / "missing.expert")
        assert [] == manager.list_loaded_experts()
        manager.load_expert("one", packages.lora)


def test_close_twice_and_use_after(packages: Packages, manager: ExpertManager) -> None:
    """Closing again does nothing; a closed manager has no expert, and an expert it had is closed."""
    manager.load_expert("one", packages.lora)
    expert = held(manager, "one")
    engine = engine_of(expert)
    manager.close()
    manager.close()
    assert engine not in engines()
    for call in (manager.generate, manager.generate_stream):
        with pytest.raises(InferenceError, match="manager is closed"):
            call("one", PROMPT)
    with pytest.raises(InferenceError, match="'expert-lora' is closed"):
        expert.generate(PROMPT)


def test_unloading_lets_streams_end(packages: Packages, manager: ExpertManager) -> None:
    """Answers that are being generated are finished, one that has not begun too, and then all is free."""
    manager.load_expert("one", packages.lora)
    expert = held(manager, "one")
    expected = manager.generate("one", PROMPT, max_tokens=40).text
    alive = weakref.ref(next(iter(engine_of(expert)._sessions.values())))
    begun = manager.generate_stream("one", PROMPT, max_tokens=40)
    pieces = [next(begun)]
    waiting = manager.generate_stream("one", PROMPT, max_tokens=40)
    manager.unload_expert("one")
    assert expected == "".join(pieces + list(begun))
    assert expected == "".join(waiting)
    del expert
    deadline = time.monotonic() + 5
    while alive() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert alive() is None


def test_bad_option_reaches_the_caller(packages: Packages, manager: ExpertManager) -> None:
    """The manager passes options on and errors back."""
    with manager:
        manager.load_expert("one", packages.lora)
        with pytest.raises(ValueError, match="top_p"):
            manager.generate("one", PROMPT, top_p=2.0)
        seeded = manager.generate("one", PROMPT, max_tokens=15, temperature=1.0, seed=3)
        again = manager.generate("one", PROMPT, max_tokens=15, temperature=1.0, seed=3)
        assert seeded.tokens == again.tokens


def test_one_package_under_two_names_outlives_either(packages: Packages, manager: ExpertManager) -> None:
    """An expert whose adapter the shared row has bound under another name answers right after that is unloaded."""
    with manager:
        manager.load_expert("one", packages.lora)
        manager.load_expert("two", packages.lora)
        expected = manager.generate("one", PROMPT, max_tokens=20).tokens
        adapter = weakref.ref(held(manager, "one").adapter)
        manager.unload_expert("one")
        gc.collect()
        assert adapter() is None
        result = manager.generate("two", PROMPT, max_tokens=20)
        assert expected == result.tokens
        assert result.timings.swap > 0  # its own arrays were bound: those of the other are gone
