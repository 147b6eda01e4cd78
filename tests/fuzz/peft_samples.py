"""A tiny base's sites and weights, and PEFT adapters for it, made of numbers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.prepare import Embeddings, prepare
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.adapters.tensors import PREFIX, same_values
from hivellm_ort.contract import Part, Site

_SIZES = {
    "self_attn.q_proj": (8, 8), "self_attn.v_proj": (4, 8), "mlp.up_proj": (6, 8), "mlp.down_proj": (8, 6),
}  # fmt: skip
SITES = [
    Site(
        f"model.layers.0.{module}",
        columns,
        (Part(f"model.layers.0.{module}", rows, bias="v_proj" in module),),
    )
    for module, (rows, columns) in _SIZES.items()
]
_WEIGHTS = {
    **{
        f"model.layers.0.{module}.weight": np.full(shape, 0.5, np.float32) for module, shape in _SIZES.items()
    },
    "model.layers.0.self_attn.v_proj.bias": np.ones(4, np.float32),
    "model.embed_tokens.weight": np.ones((5, 8), np.float32),
}
KINDS = ("lora", "dora", "adalora", "ia3")


def config(kind: str) -> dict[str, Any]:
    """What `adapter_config.json` says."""
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
    }
    match kind:
        case "dora":
            fields |= {"use_dora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}}
        case "adalora":
            fields |= {"peft_type": "ADALORA", "init_r": 2, "target_r": 1}
        case "ia3":
            fields = {
                "peft_type": "IA3",
                "target_modules": ["v_proj", "down_proj"],
                "feedforward_modules": ["down_proj"],
            }
    return {**fields, "task_type": "CAUSAL_LM", "bias": "none", "base_model_name_or_path": "tiny"}


def tensors(kind: str) -> dict[str, np.ndarray]:
    """What `adapter_model.safetensors` holds."""
    made: dict[str, np.ndarray] = {}
    for module, (rows, columns) in _SIZES.items():
        name = f"{PREFIX}model.layers.0.{module}"
        if kind == "ia3":
            if module.endswith(("v_proj", "down_proj")):
                made[f"{name}.ia3_l"] = np.full(
                    (rows, 1) if "v_proj" in module else (1, columns), 0.5, np.float32
                )
        elif "self_attn" in module:
            end = "" if kind == "adalora" else ".weight"
            made[f"{name}.lora_A{end}"] = np.full((2, columns), 0.25, np.float32)
            made[f"{name}.lora_B{end}"] = np.full((rows, 2), 0.25, np.float32)
            if kind == "adalora":
                made[f"{name}.lora_E"] = np.ones((2, 1), np.float32)
            if kind == "dora":
                made[f"{name}.lora_magnitude_vector"] = np.ones(rows, np.float32)
    return made


def prepared(folder: Path) -> PreparedAdapter:
    """Prepare the adapter in a folder for the tiny base."""
    return prepare(
        folder / ADAPTER_CONFIG,
        folder / ADAPTER_WEIGHTS,
        sites=SITES,
        tensor=_WEIGHTS.__getitem__,
        source_sha256="0" * 64,
        embeddings=Embeddings(
            5, lambda name, rows: same_values(rows, _WEIGHTS[name]) if name in _WEIGHTS else None
        ),
    )


def config_bytes(kind: str) -> bytes:
    """The configuration's file."""
    return json.dumps(config(kind)).encode()


def weights_bytes(kind: str, change: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> bytes:
    """The weights' file."""
    return save({name: change(array) for name, array in tensors(kind).items()}, metadata={"format": "pt"})
