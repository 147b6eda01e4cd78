"""The architecture keys of a GGUF file, converted to fields of a Hugging Face configuration.

Each key is read, or is known to change nothing, or is refused by name. Keys have the meaning that llama.cpp gives
them (`llama-model.cpp`, `load_hparams`).
"""

from __future__ import annotations

import math
from typing import Any

from hivellm_export.gguf.file import GgufFile
from hivellm_ort.errors import ExportError, UnsupportedArchitectureError

__all__ = ["GGUF_ARCHITECTURES", "read_config"]

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Supported values of `general.architecture`. llama.cpp's converter writes Mistral as `llama`."""

# Keys that `read_config` reads, below the name of the architecture.
_READ = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
# Keys that change nothing with one of these values; () allows any value.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "rope.scaling.finetuned": (),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_attn_factor": (1.0, -1.0),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    # The order of rows in q and k that every file of this architecture has.
    "tensor_data_layout": ("Meta AI original pth",),
}


def read_config(file: GgufFile) -> dict[str, Any]:
    """Read the fields of a Hugging Face `config.json`, with `model_type` and without those of the tokenizer.

    Raises:
        UnsupportedArchitectureError: The exporter cannot express the architecture or one of its values.
        ExportError: A key is missing or has a value of the wrong type.
    """
    kind = file.value("general.architecture", str)
    if kind not in GGUF_ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{file.name}: general.architecture {kind!r} is not supported; supported are "
            f"{', '.join(GGUF_ARCHITECTURES)}"
        )
    _check_keys(file, kind)

    def positive(name: str, default: Any = ...) -> int:
        value = file.value(f"{kind}.{name}", int, default)
        if value is not None and value < 1:
            raise ExportError(f"{file.name}: {kind}.{name} is {value} and must be at least 1")
        return value

    heads, width = positive("attention.head_count"), positive("embedding_length")
    head_dim = positive("attention.key_length", width // heads)
    for name, default in (("attention.value_length", width // heads), ("rope.dimension_count", head_dim)):
        if positive(name, default) != head_dim:
            raise UnsupportedArchitectureError(
                f"{file.name}: {kind}.{name} is {positive(name, default)}, but heads have the size {head_dim}: only "
                "heads of one size with full rotation are supported"
            )
    context, layers, inner = (
        positive(name) for name in ("context_length", "block_count", "feed_forward_length")
    )
    kv_heads = positive("attention.head_count_kv", heads)
    window = file.value(f"{kind}.attention.sliding_window", int, 0)
    rows = _shape(file, "token_embd.weight")[0]
    if positive("vocab_size", rows) != rows:
        raise ExportError(
            f"{file.name}: {kind}.vocab_size is {positive('vocab_size')}, but token_embd.weight has {rows} rows"
        )
    _check_shapes(
        file,
        kind,
        {
            "token_embd.weight": (rows, width),
            f"blk.{layers - 1}.ffn_gate.weight": (inner, width),
            f"blk.{layers - 1}.attn_q.weight": (heads * head_dim, width),
            f"blk.{layers - 1}.attn_k.weight": (kv_heads * head_dim, width),
        },
    )
    config: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": file.value(f"{kind}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": file.value(f"{kind}.rope.freq_base", float, 10000.0),
        "rope_scaling": _rope_scaling(file, kind, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
    }
    if kind != "qwen2":  # Qwen2 always has biases on q, k and v, and no others
        config["attention_bias"] = any(
            name.startswith("blk.") and ".attn_" in name and name.endswith(".bias") for name in file.tensors
        )
    if kind == "llama":
        config["mlp_bias"] = any(".ffn_" in name and name.endswith(".bias") for name in file.tensors)
    if 0 < window < context:
        if kind != "llama" or config["attention_bias"] or config["mlp_bias"]:
            raise UnsupportedArchitectureError(
                f"{file.name}: {kind}.attention.sliding_window is {window}: only Mistral's windows, which all layers "
                "have, are supported"
            )
        config |= {"model_type": "mistral", "sliding_window": window}
    return config


def _check_keys(file: GgufFile, kind: str) -> None:
    for key in file.keys:
        if not key.startswith(f"{kind}."):
            continue
        name = key.removeprefix(f"{kind}.")
        if name in _READ:
            continue
        if name not in _HARMLESS:
            raise UnsupportedArchitectureError(
                f"{file.name}: the exporter does not know {key}: the model may compute something that it cannot "
                "express"
            )
        allowed = _HARMLESS[name]
        value = file.value(key, type(allowed[0])) if allowed else None
        if allowed and value not in allowed:
            raise UnsupportedArchitectureError(f"{file.name}: {key} = {value!r} is not supported")


def _rope_scaling(file: GgufFile, kind: str, context: int) -> dict[str, Any] | None:
    """`rope_scaling` of the configuration. The tensor `rope_freqs.weight` is not part of it."""
    key = f"{kind}.rope.scaling"
    factor = file.value(f"{key}.factor", float, file.value(f"{kind}.rope.scale_linear", float, 0.0)) or 1.0
    form = file.value(f"{key}.type", str, "linear")  # llama.cpp's default: old files have only a factor
    attention = file.value(f"{key}.attn_factor", float, 1.0)
    if not (math.isfinite(factor) and factor > 0):
        raise ExportError(f"{file.name}: {key}.factor is {factor} and must be a number above 0")
    if form not in ("none", "linear", "yarn"):
        raise UnsupportedArchitectureError(
            f"{file.name}: {key}.type {form!r} is not supported; supported are none, linear, yarn"
        )
    if attention != 1.0 and form != "yarn":
        raise UnsupportedArchitectureError(f"{file.name}: {key}.attn_factor = {attention} needs type yarn")
    if form == "none" or (factor == 1.0 and attention == 1.0):
        return None
    if form == "linear":
        return {"rope_type": "linear", "factor": factor}
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.value(f"{key}.original_context_length", int, context),
        "beta_fast": file.value(f"{key}.yarn_beta_fast", float, 32.0),
        "beta_slow": file.value(f"{key}.yarn_beta_slow", float, 1.0),
    }
    if attention != 1.0:
        scaling["attention_factor"] = attention * (1.0 + 0.1 * math.log(max(factor, 1.0)))
    return scaling


def _check_shapes(file: GgufFile, kind: str, wanted: dict[str, tuple[int, ...]]) -> None:
    """Check shapes before a model is made: a wrong value could need any amount of memory."""
    for name, shape in wanted.items():
        found = _shape(file, name)
        if found != shape:
            raise ExportError(
                f"{file.name}: tensor {name} has shape {list(found)}, but the {kind}.* keys require {list(shape)}"
            )


def _shape(file: GgufFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise ExportError(f"{file.name}: tensor {name} is missing")
    return tuple(int(size) for size in reversed(file.tensors[name].shape))
