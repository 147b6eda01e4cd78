"""A slow load holds up nobody who uses another base; what belongs to a base is not changed by a load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from managing import at_rest, managed, until
from support.running import PROMPT, Packages, held, slowed

from hivellm_ort import ExpertManager, LoadError
from hivellm_ort.serving import pool
from hivellm_ort.serving.scheduler import DEFAULT_ROWS


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """A manager with one expert in memory."""
    with managed(packages) as manager:
        manager.load_expert("lora", packages.lora)
        yield manager


def test_a_slow_load(manager: ExpertManager, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another base is loaded, answers begin and end, and experts of this base are loaded and unloaded."""
    build, loading, go_on = pool.Base, threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        loading.set()
        assert go_on.wait(60)
        return build(*arguments, **options)

    stream = manager.generate_stream("lora", PROMPT, max_tokens=400, processors=[slowed])
    monkeypatch.setattr(pool, "Base", slow)
    other = threading.Thread(target=manager.load_expert, args=("short", packages.short))
    other.start()
    beside: list[str] = []

    def use() -> None:
        beside.append(manager.generate("lora", PROMPT, max_tokens=3).finish_reason)
        manager.load_expert("dora", packages.dora)
        beside.append(manager.generate("dora", PROMPT, max_tokens=3).finish_reason)
        manager.unload_expert("dora")
        stream.close()
        manager.stats()

    try:
        assert loading.wait(20)
        user = threading.Thread(target=use)
        user.start()
        user.join(timeout=30)
        assert not user.is_alive()
    finally:
        go_on.set()
        other.join(timeout=60)
    assert ["length", "length"] == beside
    assert "length" == manager.generate("short", PROMPT, max_tokens=3).finish_reason


def test_two_that_load_one_base(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share it. If loading fails for the first, the second tries, and nothing stays behind."""
    build, made = pool.Base, []

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        if len(made) == 1:
            raise MemoryError("none left")
        return build(*arguments, **options)

    monkeypatch.setattr(pool, "Base", counted)
    with managed(packages) as manager:
        with pytest.raises(MemoryError, match="none left"):
            manager.load_expert("lora", packages.lora)
        manager.load_expert("lora", packages.lora)
        manager.load_expert("dora", packages.dora)
        assert held(manager, "lora").shared_base is held(manager, "dora").shared_base
    assert 2 == len(made)
    assert [] == pool.BASES.bases


def test_a_batch_gives_back_its_rows(manager: ExpertManager) -> None:
    """A larger batch has its rows while it runs, and leaves the base as it was."""
    scheduler = held(manager, "lora").shared_base.scheduler
    seen: list[int] = []

    def note(*_: Any) -> None:
        seen.append(scheduler.rows)

    manager.generate_batch([("lora", PROMPT)] * 12, batch_size=12, max_tokens=3, processors=[[note]] * 12)
    assert 12 == max(seen)
    assert DEFAULT_ROWS == scheduler.rows
    until(lambda: not scheduler.active)
    at_rest(manager)


def test_a_prefix_cache_belongs_to_its_base(
    manager: ExpertManager, packages: Packages, caplog: pytest.LogCaptureFixture
) -> None:
    """A load with another cache size than that of the base in memory logs a warning and changes nothing."""
    prefixes = held(manager, "lora").shared_base.engine.prefixes
    size = prefixes.max_bytes
    for wanted, told in ((1, 1), (size, 0)):
        caplog.clear()
        with managed(packages, prefix_cache_bytes=wanted) as other:
            other.load_expert("dora", packages.dora)
        assert size == prefixes.max_bytes
        messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert told == sum(f"is in memory with {size} bytes" in message for message in messages)


def test_the_base_of_a_manager(packages: Packages) -> None:
    """A manager has one base for all experts, and `load_expert` may give another."""
    with managed(packages, base=packages.base) as manager:
        info = manager.load_expert("folder", packages.lora_folder)
        with pytest.raises(LoadError, match="missing"):
            manager.load_expert("other", packages.lora_folder, base=packages.cache / "missing")
        assert info.base_sha256 == held(manager, "folder").base.sha256
        assert [info.name] == [one.name for one in manager.list_loaded_experts()]
