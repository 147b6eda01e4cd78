"""The packages of the runtime's tests, and functions that inspect the library's state."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from hivellm_ort import Expert, ExpertManager
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.session import Engine
from hivellm_ort.serving.pool import BASES
from support.rows import begun

CONTEXT = 512
SHORT_CONTEXT = 128
PROMPT = "select the users"


@dataclass(frozen=True)
class Packages:
    """Packages on disk, and a cache for them.

    Attributes:
        cache: For `cache_dir`.
        model: The base model's folder, a qwen3 with a context of `CONTEXT`.
        base: Its bundle in fp32.
        lora: An expert on it.
        dora: Another, of the same bundle.
        ia3: A third.
        lora_folder: Where `lora` was exported from.
        ending: As `lora`, but the base ends answers at `eos` too.
        eos: The 21st token that `lora` answers to `PROMPT`, or an earlier one of the same id.
        merged: As `dora`, folded into its base.
        short: An expert on another base, a llama with a context of `SHORT_CONTEXT`.
    """

    cache: Path
    model: Path
    base: Path
    lora: Path
    dora: Path
    ia3: Path
    lora_folder: Path
    ending: Path
    eos: int
    merged: Path
    short: Path

    def load(self, name: str, *, device: str | None = None, threads: int | None = 1) -> Expert:
        """Load one of the packages."""
        return Expert.load(getattr(self, name), cache_dir=self.cache, device=device, threads=threads)


def engine_of(expert: Expert) -> Engine:
    """Return the engine of an expert's base."""
    return expert._base.engine


def engines() -> list[Engine]:
    """Return the engines of all loaded bases."""
    return [base.engine for base in BASES.bases]


def held(manager: ExpertManager, name: str) -> Expert:
    """Return the expert that a manager has in memory under a name."""
    expert = manager._registry.get(name).expert
    assert expert is not None
    return expert


def active(expert: Expert) -> int:
    """Return the number of waiting and running requests of an expert's base."""
    scheduler = expert._base.scheduler
    return scheduler.active + scheduler.queued


def prompt_ids(expert: Expert, prompt: str) -> list[int]:
    """Return the tokens of the rendered chat template, from the tokenizers library."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = tokenizers.Tokenizer.from_file(str(engine_of(expert).folder / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def greedy(
    expert: Expert, token_ids: list[int], *, steps: int, capacity: int, adapter: BoundAdapter | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the most likely token and the logits of each step, on a separate row."""
    row = begun(engine_of(expert), adapter or expert.adapter, capacity)
    pending = token_ids
    for _ in range(steps):
        logits = row.forward(pending).copy()
        pending = [int(logits.argmax())]
        yield pending[0], logits


def slowed(_: Any, logits: np.ndarray) -> np.ndarray:
    """Return the logits after a pause, so that there is time to cancel."""
    time.sleep(0.01)
    return logits


def replace_files(bundle: Path, files: dict[str, str]) -> None:
    """Write other files into a bundle, and their digests into its list."""
    path = bundle / "decoder.json"
    document = json.loads(path.read_bytes())
    for name, text in files.items():
        content = text.encode()
        (bundle / name).unlink()  # it may be shared with other bundles of the cache
        (bundle / name).write_bytes(content)
        document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.unlink()
    path.write_text(json.dumps(document))
