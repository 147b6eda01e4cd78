"""The store with several processes, and with processes that die."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from package_samples import BASE, BASE_DIGEST, bundle, expert, files_under, no_work_left

from hivellm_ort.package.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def test_killed_work_is_swept(tmp_path: Path, store: Store) -> None:
    """Work in progress older than a day is removed, younger work is left."""
    for name, age in (("old", 25), ("young", 23)):
        folder = store.root / "tmp" / name
        (folder / "package").mkdir(parents=True)
        then = time.time() - age * 3600
        os.utime(folder, (then, then))
    store.unpack(expert(tmp_path / "p.expert"))
    assert ["young"] == [path.name for path in (store.root / "tmp").iterdir()]


def _killed_at(package: Path, root: Path, step: int) -> None:
    """Unpack in a process that dies at the given renaming or syncing."""
    left = [step]

    def dying(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return function(*args, **options)

        return call

    Path.rename = dying(Path.rename)  # type: ignore[method-assign]
    os.fsync = dying(os.fsync)
    Store(root).unpack(package)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Whenever a process dies, what has a final name is whole, and the next process succeeds."""
    package = expert(tmp_path / "p.expert", base=BASE)
    context = multiprocessing.get_context("spawn")
    codes = []
    for step in (0, 7, 8, 9, 10, 11):
        root = tmp_path / f"store{step}"
        process = context.Process(target=_killed_at, args=(package, root, step))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        assert {BASE_DIGEST} >= {path.name for path in (root / "bases").glob("*")}
        assert all(BASE == files_under(path) for path in (root / "bases").glob("*"))
        assert all((path / "index.json").is_file() for path in (root / "packages").glob("*"))
        assert BASE == files_under(Store(root).unpack(package).bundle or tmp_path)
    assert (9, 0) == (codes[0], codes[-1])


def _unpack_many(root: Path, packages: list[Path], start: Any, results: Any) -> None:
    start.wait(60)
    results.put([str(Store(root).unpack(package).bundle) for package in packages])


def test_concurrent_unpack(tmp_path: Path, store: Store) -> None:
    """Two processes that unpack the same packages at once both get them, whole and once."""
    base = bundle(os.urandom(2 << 20))
    packages = [expert(tmp_path / f"{n}.expert", base=base, adapter=bytes([n])) for n in range(3)]
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_unpack_many, args=(store.root, packages, start, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [0, 0] == [process.exitcode for process in processes]
    folder = store.root / "bases" / hashlib.sha256(base["decoder.json"]).hexdigest()
    assert [[str(folder)] * 3] * 2 == found
    assert base == files_under(folder)
    assert 3 == len(list((store.root / "packages").iterdir()))
    assert no_work_left(store)
