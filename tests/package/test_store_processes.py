"""The store with several processes, and with processes that die."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import random
import shutil
import time
from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, bundle, expert, files_under, no_work_left
from store_samples import assert_whole, count
from store_workers import die_at, load, load_all, processes, race

from hivellm_ort.package.store import Store

NOISE = random.Random(3).randbytes(4 << 20)


def test_killed_work_is_swept(tmp_path: Path) -> None:
    """Unfinished files of a killed process are removed by the next process that adds an entry."""
    store = Store(tmp_path / "store")
    (store.root / "tmp" / "left" / "package").mkdir(parents=True)
    store.unpack(expert(tmp_path / "p.expert"))
    assert no_work_left(store)


@pytest.mark.parametrize("kind", ["empty", "damaged", "full"])
def test_killed_at_every_step(tmp_path: Path, kind: str) -> None:
    """If a process is killed at any point, files with final names are complete, and the next process succeeds."""
    package = expert(tmp_path / "p.expert", base=BASE)
    old = expert(tmp_path / "old.expert", base=bundle(NOISE[:100_000]))
    context, code, step = processes(), None, 0
    while code != 0:
        root = tmp_path / f"store{step}"
        if kind == "damaged":
            unpacked = Store(root).unpack(package)
            for path in (unpacked.root / "manifest.json", root / "bases" / BASE_DIGEST / "weights.bin"):
                path.write_bytes(path.read_bytes().swapcase())
        if kind == "full":
            Store(root).unpack(old)
        process = context.Process(target=die_at, args=(step, root, package, 50_000))
        process.start()
        process.join(60)
        code = process.exitcode
        assert code in (0, 9)
        if kind != "damaged" or code == 0:
            assert_whole(root)
        load(root, package, 50_000)
        assert BASE == files_under(root / "bases" / BASE_DIGEST)
        assert [] == Store(root).prune()
        assert no_work_left(Store(root))
        assert_whole(root)
        shutil.rmtree(root)
        step += 1
    # Fewer steps would mean that they are not counted.
    assert 15 < step


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """A process killed at any moment of loading, evicting or pruning leaves a store that is whole and works."""
    packages = [
        expert(tmp_path / f"{name}.expert", base=bundle(NOISE + name.encode()), adapter=NOISE[: 1 << 20])
        for name in "ab"
    ]
    size = 6 << 20  # too small for both bases, so that the second package takes the place of the first
    context, chance = processes(), random.Random()
    span, killed = 0.0, 0
    for number in range(count("HIVELLM_KILL_ROUNDS", 10) + 1):
        root = tmp_path / f"store{number}"
        mine, theirs = context.Pipe()
        process = context.Process(target=load_all, args=(root, packages, size, theirs))
        process.start()
        mine.recv()
        if number == 0:
            span = mine.recv()
        else:
            time.sleep(chance.uniform(0, span))
            process.kill()
        process.join(60)
        killed += process.exitcode != 0
        assert_whole(root)
        load_all(root, packages, size, theirs)
        assert_whole(root)
        assert no_work_left(Store(root))
        shutil.rmtree(root)
    assert 0 < killed


def test_loaded_by_two_at_once(tmp_path: Path) -> None:
    """Two processes that load one package at the same moment both get it, whole and once."""
    base = bundle(NOISE[: 2 << 20])
    package = expert(tmp_path / "p.expert", base=base)
    roots = [tmp_path / f"store{number}" for number in range(count("HIVELLM_RACE_ROUNDS", 5))]
    context = processes()
    start, results = context.Barrier(2), context.Queue()
    jobs = [(root, package) for root in roots]
    both = [context.Process(target=race, args=(jobs, start, results)) for _ in range(2)]
    for process in both:
        process.start()
    found = [results.get(timeout=600) for _ in both]
    for process in both:
        process.join(60)
    assert [0, 0] == [process.exitcode for process in both]
    digest = hashlib.sha256(base["decoder.json"]).hexdigest()
    assert [[(str(root / "bases" / digest), True) for root in roots]] * 2 == found
    for root in roots:
        assert base == files_under(root / "bases" / digest)
        assert 1 == len(list((root / "packages").iterdir()))
        assert no_work_left(Store(root))
        assert_whole(root)
