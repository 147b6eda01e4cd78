"""GGUF files: a base model is read, or refused with an ExportError."""

from __future__ import annotations

import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from attempts import refusing
from mutations import bytes_changed, mutated
from support import gguf_files
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

from hivellm_export.base_model import load_base
from hivellm_ort.errors import ExportError

_FOLDER = Path(tempfile.mkdtemp(prefix="hivellm-fuzz-"))
_SHAPE = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 16, "vocab_size": 264, "tie_word_embeddings": True,
}  # fmt: skip
_KEYS = [
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "attention.sliding_window",
    "vocab_size", "expert_count", "attention.causal", "rope.freq_base", "block_count", "context_length",
]  # fmt: skip
_VALUES: list[Any] = [
    0, 1, 2, 7, 8, 264, 10**6, 10**9, (1 << 32) - 1, 0.0, -1.0, 1e30, float("nan"), "", "linear", "yarn",
    "none", True,
    False, "llama", "qwen2", "gpt2", "a" * 5000, "é", [1, 2], ["a"], ["a", "a"], [0.5] * 264, [1] * 264, ["x"] * 264,
]  # fmt: skip


@cache
def _parts(kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    model = gguf_files.random_model((LlamaConfig if kind == "llama" else Qwen2Config)(**_SHAPE))
    return gguf_files.tiny_keys(model, kind), gguf_files.model_tensors(model, kind)


def samples() -> list[bytes]:
    """A sound file of each of two architectures."""
    return [_file(*_parts(kind)) for kind in ("llama", "qwen2")]


def _file(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    return gguf_files.save(_FOLDER / "made.gguf", keys, tensors).read_bytes()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Other bytes, most of them before the tensors; or a file made of other values, with tensors of other shapes."""
    if rng.random() < 0.5:
        try:
            return _made(rng)
        except (
            struct.error,
            ValueError,
            TypeError,
            OverflowError,
            AttributeError,
            KeyError,
        ):  # the writer does not take them
            pass
    end = data.find(b"token_embd") + 600 if rng.random() < 0.8 else len(data)
    return mutated(data[:end], rng, [bytes_changed]) + data[end:]


def _made(rng: random.Random) -> bytes:
    kind = rng.choice(("llama", "qwen2"))
    keys, tensors = (dict(part) for part in _parts(kind))
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(6):
            case 0 | 1:
                key = rng.choice([*keys, *(f"{kind}.{name}" for name in _KEYS)])
                keys[key] = rng.choice(_VALUES)
            case 2:
                key = rng.choice([key for key, value in keys.items() if isinstance(value, list)] or [*keys])
                value = keys[key]
                if isinstance(value, list):
                    value = list(value)
                    value[rng.randrange(len(value))] = rng.choice([value[0], rng.choice(_VALUES)])
                    keys[key] = value[: rng.choice((len(value), len(value), 3))]
            case 3:
                keys.pop(rng.choice([key for key in keys if key != "general.architecture"]), None)
            case 4:
                name = rng.choice([*tensors])
                shape = rng.choice([(1,), (8,), (8, 8), (264, 8), (4, 4), (1, 1, 8)])
                tensors[rng.choice((name, "rope_freqs.weight", "output.weight", "x"))] = np.ones(
                    shape, np.float32
                )
            case _:
                name = rng.choice([*tensors])
                tensors[name] = tensors[name].astype(rng.choice((np.float16, np.float64, np.int8, np.int32)))
    return _file(keys, tensors)


def target(data: bytes) -> None:
    """Read the file as `hivellm-ort export --base` does."""
    path = _FOLDER / "tiny.gguf"
    path.write_bytes(data)
    with refusing(ExportError):
        base = load_base(path)
        assert base.architecture.num_hidden_layers >= 1
        assert base.tokenizer.encode("ab") is not None
