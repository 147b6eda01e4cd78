"""Models from GGUF files compute what transformers computes with the configuration they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from parity import PROMPT, TOLERANCE
from support import gguf_files
from support.rows import begun
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from hivellm_export.base_model import load_base
from hivellm_export.pipeline import export
from hivellm_ort.engine.session import Engine

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 260,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.0}
SCALING = "rope.scaling"
# Name, class, fields of the configuration, architecture of the file, values that say the same as the fields.
MODELS: list[tuple[str, Any, dict[str, Any], str, dict[str, Any]]] = [
    ("llama", LlamaConfig, {"tie_word_embeddings": False}, "llama", {}),
    ("llama-tied", LlamaConfig, {"tie_word_embeddings": True}, "llama", {}),
    ("llama-3", LlamaConfig, {"rope_scaling": LLAMA3}, "llama", {}),
    (
        "llama-linear", LlamaConfig, {"rope_scaling": LINEAR}, "llama",
        {f"{SCALING}.type": "linear", f"{SCALING}.factor": 2.0},
    ),
    ("llama-old-linear", LlamaConfig, {"rope_scaling": LINEAR}, "llama", {"rope.scale_linear": 2.0}),
    ("llama-unscaled", LlamaConfig, {}, "llama", {f"{SCALING}.type": "none", f"{SCALING}.factor": 2.0}),
    ("llama-biased", LlamaConfig, {"attention_bias": True, "mlp_bias": True}, "llama", {}),
    ("mistral", MistralConfig, {"sliding_window": 8, "head_dim": 16}, "llama", {"attention.sliding_window": 8}),
    ("qwen2", Qwen2Config, {"tie_word_embeddings": True}, "qwen2", {}),
    (
        "qwen2-yarn", Qwen2Config, {"rope_scaling": YARN}, "qwen2",
        {f"{SCALING}.type": "yarn", f"{SCALING}.factor": 4.0, f"{SCALING}.original_context_length": 32},
    ),
    (
        "qwen2-yarn-1.2", Qwen2Config, {"rope_scaling": {**YARN, "attention_factor": 1.2 * (1 + 0.1 * np.log(4.0))}},
        "qwen2",
        {
            f"{SCALING}.type": "yarn", f"{SCALING}.factor": 4.0, f"{SCALING}.original_context_length": 32,
            f"{SCALING}.attn_factor": 1.2,
        },
    ),
    ("qwen3", Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}, "qwen3", {}),
]  # fmt: skip


def made(case: str) -> tuple[nn.Module, str, dict[str, Any], dict[str, np.ndarray]]:
    """The model of a case, and architecture, values and tensors of its file."""
    _, config_class, fields, kind, values = next(entry for entry in MODELS if entry[0] == case)
    model = gguf_files.random_model(config_class(**{**SHAPE, **fields}))
    keys = gguf_files.tiny_keys(model, kind) | {f"{kind}.{name}": value for name, value in values.items()}
    tensors = gguf_files.model_tensors(model, kind)
    if fields.get("rope_scaling") is LLAMA3:
        plain, _ = ROPE_INIT_FUNCTIONS["default"](model.config, "cpu")
        tensors["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq).numpy()
    return model, kind, keys, tensors


def reference(model: nn.Module, token_ids: list[int]) -> np.ndarray:
    """Logits float32 [len(token_ids), vocab] of transformers."""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def computed(engine: Engine, token_ids: list[int], steps: int) -> tuple[np.ndarray, list[int]]:
    """Logits after the prompt, and after each of the greedy tokens that follow; and those tokens."""
    row = begun(engine, None, len(token_ids) + steps)
    logits, chosen = [row.forward(token_ids).copy()], []
    for _ in range(steps):
        chosen.append(int(np.argmax(logits[-1])))
        logits.append(row.forward(chosen[-1:]).copy())
    return np.concatenate([array.reshape(1, -1) for array in logits]), chosen


@pytest.mark.parametrize("case", [entry[0] for entry in MODELS])
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Prompt and 24 greedy steps, in float32, with the rotary embedding, heads, biases and window of the file."""
    model, _, keys, tensors = made(case)
    path = gguf_files.save(tmp_path / "tiny.gguf", keys, tensors)
    export(path, [], tmp_path / "out", precision="fp32")
    actual, tokens = computed(Engine(tmp_path / "out", threads=1), PROMPT, 24)
    expected = reference(model, PROMPT + tokens)[len(PROMPT) - 1 :]
    assert [int(np.argmax(row)) for row in expected[:-1]] == tokens
    assert np.abs(expected - actual).max() < TOLERANCE


@pytest.mark.parametrize("case", ["llama-3", "llama-linear", "qwen2-yarn", "mistral"])
def test_what_is_scaled_matters(case: str, tmp_path: Path) -> None:
    """Without the values and the tensor of its scaling the same file computes something else."""
    model, kind, keys, tensors = made(case)
    values = next(entry[4] for entry in MODELS if entry[0] == case)
    keys |= {f"{kind}.{name}": None for name in values}
    tensors.pop("rope_freqs.weight", None)
    plain = load_base(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors)).model
    assert np.abs(reference(model, PROMPT * 4) - reference(plain, PROMPT * 4)).max() > 100 * TOLERANCE


def stored(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray | None:
    """A tensor of that type, of `values` where the library can make it, else of any bytes; None without numbers."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        shape = gguf.quant_shape_to_byte_shape(values.shape, kind)
    # Small bytes, so that no scale is NaN.
    data = np.random.default_rng(0).integers(0, 50, shape).astype(np.uint8)
    try:
        gguf.quants.dequantize(data, kind)
    except NotImplementedError:
        return None
    return data


READABLE = [
    kind for kind in gguf.GGMLQuantizationType if stored(np.ones((1, 256), np.float32), kind) is not None
]


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_quantised_tensors(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """Tensors of every type that the gguf library can read are its numbers, q and k in transformers' order."""
    config = LlamaConfig(**{**SHAPE, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1})
    model = gguf_files.random_model(config)
    tensors = gguf_files.model_tensors(model, "llama")
    data = stored(tensors["blk.0.attn_q.weight"], kind)
    assert data is not None
    raw = {"blk.0.attn_q.weight": (data, kind), "blk.0.ffn_up.weight": (data, kind)}
    path = gguf_files.save(tmp_path / "tiny.gguf", gguf_files.tiny_keys(model, "llama"), tensors, raw=raw)
    base = load_base(path)
    expected = gguf.quants.dequantize(data, kind)
    np.testing.assert_array_equal(expected, base.tensor("model.layers.0.mlp.up_proj.weight"))
    expected = expected.reshape(4, 32, 2, 256).swapaxes(1, 2).reshape(256, 256)
    np.testing.assert_array_equal(expected, base.tensor("model.layers.0.self_attn.q_proj.weight"))


def test_model_in_parts(tmp_path: Path) -> None:
    """A model in several files is read from the first, and each part goes into the digest."""
    _, _, keys, tensors = made("llama")
    whole = load_base(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    names = list(tensors)
    paths = [tmp_path / f"tiny-{number:05}-of-00002.gguf" for number in (1, 2)]
    for number, (path, part) in enumerate(zip(paths, (names[:5], names[5:]), strict=True)):
        own = keys if number == 0 else {"general.architecture": "llama"}
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(tensors)}
        gguf_files.save(path, own | split, {name: tensors[name] for name in part})
    parts = load_base(paths[0])
    assert "tiny" == parts.name
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, parts.model.get_parameter(name)), name
    tensors[names[-1]] = tensors[names[-1]] + 1
    gguf_files.save(
        paths[1],
        {
            "general.architecture": "llama",
            "split.no": 1,
            "split.count": 2,
            "split.tensors.count": len(tensors),
        },
        {name: tensors[name] for name in names[5:]},
    )
    assert parts.source_sha256 != load_base(paths[0]).source_sha256
