"""What the tests of the store do in other processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from hivellm_ort.package.store import Store

KEY = "ab" * 32
PREPARED = b"tensors" * 1000


def processes() -> Any:
    """Processes that share nothing with this one, and start as quickly as the platform allows."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hivellm_ort.package.store", "pytest"])
    return context


def load(root: Path, package: Path, max_bytes: int) -> None:
    """Unpack, repair damaged entries, store a prepared adapter, and keep the size limit."""
    store = Store(root, max_bytes=max_bytes)
    store.unpack(package, check="digest")
    store.prepare_adapter(KEY, lambda: PREPARED)


def die_at(step: int, root: Path, package: Path, max_bytes: int) -> None:
    """Load in a process that dies at the given renaming, linking or syncing."""
    left = [step]

    def dying(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return function(*args, **options)

        return call

    Path.rename = dying(Path.rename)  # type: ignore[method-assign]
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    os.link = dying(os.link)
    os.fsync = dying(os.fsync)
    load(root, package, max_bytes)


def load_all(root: Path, packages: list[Path], max_bytes: int, ready: Any) -> None:
    """All that a process does to a store; says when it begins, and then how many seconds it took."""
    ready.send(None)
    begin = time.perf_counter()
    for package in packages:
        load(root, package, max_bytes)
    Store(root).prune()
    ready.send(time.perf_counter() - begin)


def race(jobs: list[tuple[Path, Path]], start: Any, results: Any) -> None:
    """Load packages, each at the same moment as another process."""
    found = []
    for root, package in jobs:
        start.wait(60)
        unpacked = Store(root).unpack(package)
        prepared = Store(root).prepare_adapter(KEY, lambda: PREPARED)
        found.append((str(*unpacked.bundles), prepared.read_bytes() == PREPARED))
    results.put(found)


def load_held(root: Path, package: Path) -> dict[str, bytes]:
    """The files of a package's base, read while the store holds them."""
    with Store(root) as store:
        (base,) = store.unpack(package).bundles
        adapter = store.prepare_adapter(KEY, lambda: PREPARED)
        files = {path.name: path.read_bytes() for path in base.iterdir()}
        assert PREPARED == adapter.read_bytes()
        return files


def hold_for_ever(root: Path, package: Path, ready: Any) -> None:
    """Hold a package until the process is killed."""
    with Store(root) as store:
        store.unpack(package)
        ready.send(None)
        time.sleep(600)


def clear_until(root: Path, stop: Any, cleared: Any) -> None:
    """Clear a store again and again, and count how often."""
    while not stop.is_set():
        Store(root).clear()
        cleared.value += 1
