"""Prepared adapters are made once and kept whole."""

# The expected value comes first.

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from package_samples import no_work_left
from store_samples import assert_whole

from hivellm_ort.package.store import Store

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def _never() -> bytes:
    raise AssertionError("made again")


def test_made_once(store: Store) -> None:
    """The first call makes it, later ones find it."""
    path = store.prepare_adapter(KEY, lambda: b"tensors")
    assert store.root / "adapters" / f"{KEY}.safetensors" == path
    assert b"tensors" == path.read_bytes()
    assert path == store.prepare_adapter(KEY, _never)
    assert path == Store(store.root).prepare_adapter(KEY, _never, check="digest")
    assert no_work_left(store)
    assert_whole(store.root)


@pytest.mark.parametrize("key", ["", "ab", KEY.upper(), "../" + KEY, KEY + "\n", KEY + "00"])
def test_key_must_be_a_digest(store: Store, key: str) -> None:
    """A key that is no digest is refused and makes nothing."""
    with pytest.raises(ValueError, match="SHA-256"):
        store.prepare_adapter(key, _never)
    assert not store.root.exists()


def _no_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"cut"),
        lambda path: path.unlink(),
        _no_record,
        lambda path: path.with_suffix(".json").write_bytes(b"{}"),
        lambda path: path.with_suffix(".json").write_bytes(b'{"sha256": "x"}'),
    ],
    ids=["cut", "gone", "no record", "empty record", "record without size"],
)
def test_damaged_is_made_again(store: Store, damage: Callable[[Path], object]) -> None:
    """One of another size, or without its record, as a killed process leaves it, is made again."""
    path = store.prepare_adapter(KEY, lambda: b"tensors")
    damage(path)
    assert path == store.prepare_adapter(KEY, lambda: b"tensors")
    assert b"tensors" == path.read_bytes()
    assert path == store.prepare_adapter(KEY, _never)


def test_change_of_equal_size(store: Store) -> None:
    """A changed byte is found by check='digest'."""
    path = store.prepare_adapter(KEY, lambda: b"tensors")
    path.write_bytes(b"TENSORS")
    assert path == store.prepare_adapter(KEY, _never)
    store.prepare_adapter(KEY, lambda: b"tensors", check="digest")
    assert b"tensors" == path.read_bytes()


def test_failing_make_leaves_nothing(store: Store) -> None:
    """An error of the maker comes through as it is, and nothing is stored."""

    def failing() -> bytes:
        raise FileNotFoundError("the weights")

    with pytest.raises(FileNotFoundError, match="the weights"):
        store.prepare_adapter(KEY, failing)
    assert not (store.root / "adapters").exists()


def test_made_by_two_at_once(store: Store) -> None:
    """The store is free while one is made, so another may make it meanwhile; both succeed."""

    def make() -> bytes:
        Store(store.root).prepare_adapter(KEY, lambda: b"tensors")
        return b"tensors"

    path = store.prepare_adapter(KEY, make)
    assert b"tensors" == path.read_bytes()
    assert_whole(store.root)


def test_use_is_noted(store: Store) -> None:
    """Finding it sets its time."""
    path = store.prepare_adapter(KEY, lambda: b"tensors")
    os.utime(path, (1, 1))
    store.prepare_adapter(KEY, _never)
    assert 1 < path.stat().st_mtime
