"""Packages made of other packages, threads that must end, and what is in memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from support.running import Packages

from hivellm_ort import ExpertManager
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.observability import Event

STRESS = bool(os.environ.get("HIVELLM_STRESS"))
"""Whether tests take the counts that were promised, minutes long, in place of quick ones."""


class Variants:
    """Folders of thin experts, made of exported packages with other weights and another manifest."""

    def __init__(self, packages: Packages, folder: Path):
        self._packages, self._folder = packages, folder

    def make(self, name: str, kind: str = "lora", *, factor: float = 1.0, **sections: Any) -> Path:
        """An expert called `name`.

        Args:
            name: the name of its manifest, and of its folder.
            kind: the package whose adapter it takes.
            factor: what its weights are multiplied with.
            sections: of its manifest.
        """
        target = self._folder / str(len(list(self._folder.iterdir()))) / name
        (target / "onnx").mkdir(parents=True)
        with tarfile.open(getattr(self._packages, kind)) as archive:
            archive.extractall(target / "source", filter="data")
        source = target / "source"
        manifest = json.loads((source / "manifest.json").read_text()) | {"name": name, **sections}
        (target / "manifest.json").write_text(json.dumps(manifest))
        adapter = PreparedAdapter.from_file(source / "onnx" / "adapter.safetensors")
        modules = {
            key: dataclasses.replace(module, lora_B=module.lora_B * np.float32(factor))
            if module.lora_B is not None
            else module
            for key, module in adapter.modules.items()
        }
        changed = dataclasses.replace(adapter, modules=modules)
        (target / "onnx" / "adapter.safetensors").write_bytes(changed.to_bytes())
        with self._packages.load(kind):
            pass  # its base is in the cache now
        return target


class Gate:
    """A processor that keeps its request in the middle of a step until `open` is set."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: Any, logits: np.ndarray) -> np.ndarray:
        """Wait."""
        self.reached.set()
        assert self.open.wait(30)
        return logits


class Recorder:
    """A listener that counts events by type."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count it."""
        with self._lock:
            self.counts[type(event).__name__] += 1
            self.events.append(event)

    def kinds(self, *names: str) -> list[str]:
        """The events of these types, in order."""
        return [type(event).__name__ for event in self.events if type(event).__name__ in names]


def together(calls: Iterable[Callable[[], object]], *, seconds: float = 60) -> None:
    """Call all functions at once. They must end in time. An error of one of them is raised."""
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.01))
    alive = sum(thread.is_alive() for thread in threads)
    assert 0 == alive, f"{alive} of {len(threads)} threads hang"
    if errors:
        raise errors[0]


def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait for a condition; it must come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came to be"
        time.sleep(0.005)


def at_rest(manager: ExpertManager) -> None:
    """Wait until a manager does nothing, and has made the room that its limits ask for."""
    registry = manager._registry

    def resting() -> bool:
        bases = registry.bases()
        return (
            not registry._leases
            and not registry._background._threads
            and not registry._eviction_wanted
            and not manager._requests.running
            and all(base.scheduler._idle and not base.scheduler.queued for base in bases)
        )

    until(resting)
    time.sleep(0.02)  # what rests may have found that there is too much
    until(resting)


@contextmanager
def suppress_message(kind: type[Exception], text: str) -> Iterator[None]:
    """Pass over an error of this type whose message holds a text, and no other."""
    try:
        yield
    except kind as error:
        if text not in str(error):
            raise


def adapters_alive() -> int:
    """How many adapters of experts are in memory."""
    gc.collect()
    return sum(type(one) is BoundAdapter and one.digest != "none" for one in gc.get_objects())


def sessions_alive() -> int:
    """How many sessions of ONNX Runtime are in memory."""
    gc.collect()
    return sum(type(one) is onnxruntime.InferenceSession for one in gc.get_objects())


def managed(packages: Packages, **options: Any) -> ExpertManager:
    """An empty manager on the cache of the packages."""
    return ExpertManager(cache_dir=packages.cache, threads=1, trust="off", **options)
