"""The packages the runtime tests run, and a look at what the library holds for them."""

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
        cache: for `cache_dir`.
        model: the base model's folder, a qwen3 with a context of `CONTEXT`.
        base: its bundle in fp32.
        lora: an expert on it.
        dora: another, of the same bundle.
        ia3: a third.
        lora_folder: where `lora` was exported from.
        ending: as `lora`, but the base ends answers at `eos` too.
        eos: the 21st token that `lora` answers to `PROMPT`, or an earlier one of the same id.
        merged: as `dora`, folded into its base.
        short: an expert on another base, a llama with a context of `SHORT_CONTEXT`.
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
        """The expert of one of the packages."""
        return Expert.load(getattr(self, name), cache_dir=self.cache, device=device, threads=threads)


def engine_of(expert: Expert) -> Engine:
    """The engine that an expert shares with others of its base."""
    return expert._base.engine


def engines() -> list[Engine]:
    """Every engine that loaded experts hold."""
    return [base.engine for base in BASES.bases]


def held(manager: ExpertManager, name: str) -> Expert:
    """The expert that a manager has in memory under a name."""
    expert = manager._registry.get(name).expert
    assert expert is not None
    return expert


def active(expert: Expert) -> int:
    """How many requests to the base of an expert are being answered or wait."""
    scheduler = expert._base.scheduler
    return scheduler.active + scheduler.queued


def prompt_ids(expert: Expert, prompt: str) -> list[int]:
    """The tokens of the rendered chat template, by the tokenizers library."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = tokenizers.Tokenizer.from_file(str(engine_of(expert).folder / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def greedy(
    expert: Expert, token_ids: list[int], *, steps: int, capacity: int, adapter: BoundAdapter | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Most likely token and logits, step by step, on a row of its own."""
    row = begun(engine_of(expert), adapter or expert.adapter, capacity)
    pending = token_ids
    for _ in range(steps):
        logits = row.forward(pending).copy()
        pending = [int(logits.argmax())]
        yield pending[0], logits


def slowed(_: Any, logits: np.ndarray) -> np.ndarray:
    """A processor that makes a step last, so that there is time to cancel."""
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
