"""The workers of a run, started when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.environments import SetupError, make_environment
from harness.models import ROOT, make_folder, make_source
from harness.plan import LOOKUP, System
from harness.workers import Worker, WorkerError

__all__ = ["Fleet"]

_END = 2  # <|im_end|>


class Fleet:
    """Workers by system and model; each is started once and sleeps between its turns.

    Args:
        work: the working folder.
        threads: of every system.
        only_ready: set nothing up.
        torch_index: see `make_environment`.
        heldout: a folder with held-out prompts, if there is one.

    Attributes:
        heldout: as given.
        versions: by peer, as the workers tell.
    """

    def __init__(
        self, work: Path, *, threads: int, only_ready: bool, torch_index: str | None, heldout: Path | None
    ):
        self.work, self.threads = work, threads
        self._only_ready, self._torch_index = only_ready, torch_index
        self._workers: dict[tuple[System, str, tuple[str, ...]], Worker] = {}
        self._failed: dict[tuple[System, str, tuple[str, ...]], str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.heldout = heldout

    def worker(self, system: System, model: str, experts: Sequence[str] = ()) -> Worker:
        """The worker of a system, which stays.

        Raises:
            WorkerError: it cannot be set up or does not start; it is not tried again.
        """
        key = (system, model, tuple(experts))
        if key in self._failed:
            raise WorkerError(self._failed[key])
        if key not in self._workers:
            try:
                self._workers[key] = self.fresh(system, model, experts)
            except WorkerError as error:
                self._failed[key] = str(error)
                raise
        return self._workers[key]

    def fresh(self, system: System, model: str, experts: Sequence[str] = ()) -> Worker:
        """A worker of its own, which the caller closes.

        Raises:
            WorkerError: it cannot be set up or does not start.
        """
        try:
            folder = self.prepare(system, model)
            named = {name: self.prepare(system, model, name) for name in experts}
        except SetupError as error:
            raise WorkerError(f"set-up: {error}") from error
        spec: dict[str, Any] = {
            "folder": str(folder),
            "precision": system.precision,
            "threads": self.threads,
            "end": _END,
            "experts": {name: str(path) for name, path in named.items() if path is not None},
        }
        print(f"[worker] {system.name}, {model} {' '.join(experts)}", file=sys.stderr, flush=True)
        worker = Worker(self.python(system.peer), system.peer, spec)
        self.versions[system.peer] = worker.ready["versions"]
        return worker

    def source(self, model: str) -> Path:
        """The Hugging Face folder of a model."""
        return make_source(self.work, model, only_ready=self._only_ready)

    def prepare(self, system: System, model: str, expert: str = "") -> Path | None:
        """Set up what a system needs of a model, or of an expert on it.

        Raises:
            SetupError: a step failed.
        """
        python = self.python(system.peer)
        if expert:
            return self._expert(python, system, model, expert)
        return self._folder(python, system, model)

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, which is made first where it is missing."""
        return make_environment(self.work, peer, torch_index=self._torch_index, only_ready=self._only_ready)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _folder(self, python: Path, system: System, model: str, merged: str = "") -> Path:
        ready = self._only_ready
        if system.peer == "onnx-genai":  # it reads what GenAI's builder writes
            make_folder(
                self.work,
                self.python("genai"),
                "genai",
                model,
                system.precision,
                only_ready=ready,
                merged=merged,
            )
        precision = system.precision.removesuffix(LOOKUP)
        return make_folder(self.work, python, system.peer, model, precision, only_ready=ready, merged=merged)

    def _expert(self, python: Path, system: System, model: str, name: str) -> Path | None:
        """Where a peer reads an expert: a PEFT folder, or a model with the expert folded in."""
        if system.peer in ("ours", "transformers"):
            return ROOT / "models" / f"expert-{name}"
        if system.peer in ("genai", "llamacpp", "openvino"):
            return self._folder(python, system, model, name)
        return None
