"""Read a base model's file a second time, without the exporter's own reading.

`hivellm_export.base_model` reads a base for the export. A mistake there is in PyTorch's model too, so no comparison
of answers shows it. This module reads weights and rotary embedding again: from safetensors and `config.json` of a
folder, or from tensors and keys of a GGUF file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.errors import ExportError
from hivellm_ort.textfile import decode_text

__all__ = ["GgufSource", "RotaryFacts", "SourceFile", "open_source"]

Array = NDArray[np.float32]

_NO_SCALING = ("", "none", "default")


@dataclass(frozen=True)
class RotaryFacts:
    """The rotary embedding of a source.

    Attributes:
        theta: Base of the frequencies.
        width: Number of channels of a head that are rotated.
        positions: Context length of the source.
        kind: Type of the scaling; `default` for none.
        scaling: Parameters of the scaling, by their names in transformers.
        divisors: Divisor of each frequency, [width / 2]; None for none.
        where: The field or key, for messages.
    """

    theta: float
    width: int
    positions: int
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    divisors: Array | None = None
    where: str = "rope_theta"


class SourceFile(Protocol):
    """A base model in its files."""

    path: Path

    def names(self) -> set[str]:
        """The tensors, by their names in transformers."""

    def tensor(self, name: str) -> Array:
        """Read a tensor as float32."""

    def rotary(self) -> RotaryFacts:
        """The rotary embedding."""

    @property
    def tied(self) -> bool:
        """Whether the LM head is the embedding."""


def open_source(path: Path) -> SourceFile:
    """Open the source of an export: a Hugging Face folder or a `.gguf` file."""
    return _Folder(path) if path.is_dir() else GgufSource(path)


class _Folder:
    """`config.json` and safetensors, of transformers 4 and 5."""

    def __init__(self, path: Path):
        self.path = path
        self.config: dict[str, Any] = json.loads(decode_text((path / "config.json").read_bytes()))
        files = ["model.safetensors"]
        if not (path / files[0]).is_file():
            index = json.loads(decode_text((path / "model.safetensors.index.json").read_bytes()))
            files = sorted(set(index["weight_map"].values()))
        # Tensors in the files, whether the index lists them or not.
        self._places = {name: file for file in files for name in _names_in(path / file)}

    def names(self) -> set[str]:
        # Older files store the frequencies as buffers.
        return {name for name in self._places if not name.endswith("rotary_emb.inv_freq")}

    def tensor(self, name: str) -> Array:
        from safetensors import safe_open

        with safe_open(self.path / self._places[name], framework="pt") as file:
            values: Array = file.get_tensor(name).float().numpy()
        return values

    @property
    def tied(self) -> bool:
        return bool(self._value("tie_word_embeddings"))

    def rotary(self) -> RotaryFacts:
        new, old = self.config.get("rope_parameters"), self.config.get("rope_scaling")
        scaling = dict(new or old or {})
        if scaling and all(isinstance(value, dict) for value in scaling.values()):
            scaling = dict(next(iter(scaling.values())))  # by type of layer; supported models have one
        theta = scaling.get("rope_theta", self.config.get("rope_theta"))
        width = self.config.get("head_dim")
        if width is None:
            default = self._value("head_dim") if self.config["model_type"] == "qwen3" else None
            width = default or self._value("hidden_size") // self._value("num_attention_heads")
        share = scaling.get("partial_rotary_factor", self.config.get("partial_rotary_factor")) or 1.0
        return RotaryFacts(
            theta=float(self._value("rope_theta") if theta is None else theta),
            width=int(width * share),
            positions=int(self._value("max_position_embeddings")),
            kind=str(scaling.get("rope_type", scaling.get("type", "default"))),
            scaling={
                **scaling,
                "original_max_position_embeddings": scaling.get("original_max_position_embeddings")
                or self.config.get("original_max_position_embeddings"),
            },
            where="config.json: " + ("rope_parameters" if new else "rope_theta and rope_scaling"),
        )

    def _value(self, name: str) -> Any:
        """A field, or the default of the architecture."""
        import transformers

        if self.config.get(name) is not None:
            return self.config[name]
        default = transformers.AutoConfig.for_model(self.config["model_type"])
        if name == "rope_theta" and not hasattr(default, name):
            return default.rope_parameters["rope_theta"]
        return getattr(default, name)


_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FREQUENCIES = "rope_freqs.weight"


class GgufSource:
    """Tensors and keys of a GGUF file, read with the library `gguf`."""

    def __init__(self, path: Path):
        import gguf

        self.path = path
        self._reader = gguf.GGUFReader(path)
        self.kind = str(self.key("general.architecture"))
        self._tensors = {_gguf_name(tensor.name): tensor for tensor in self._reader.tensors}

    def key(self, name: str, default: Any = None) -> Any:
        """Value of a key; `{}` in the name is replaced by the architecture."""
        found = self._reader.get_field(name.format(getattr(self, "kind", "")))
        return default if found is None else found.contents()

    def names(self) -> set[str]:
        """The tensors, by their names in transformers."""
        return self._tensors.keys() - {_FREQUENCIES}

    def tensor(self, name: str) -> Array:
        """Read a tensor as float32."""
        from gguf.quants import dequantize

        found = self._tensors[name]
        values = np.asarray(dequantize(found.data, found.tensor_type), np.float32)
        module = name.rpartition(".")[0]
        if self.kind in ("llama", "mistral") and module.endswith(("q_proj", "k_proj")):
            return self._halves(values, keys=module.endswith("k_proj"))
        return values

    @property
    def tied(self) -> bool:
        """Whether the LM head is the embedding."""
        return "lm_head.weight" not in self._tensors

    def rotary(self) -> RotaryFacts:
        """The rotary embedding."""
        heads = int(self.key("{}.attention.head_count"))
        width = self.key("{}.rope.dimension_count") or self.key("{}.attention.key_length")
        width = int(width or self.key("{}.embedding_length") // heads)
        positions = int(self.key("{}.context_length"))
        prefix = "{}.rope.scaling."
        linear = self.key("{}.rope.scale_linear")  # the key of older files
        kind = str(self.key(prefix + "type", "linear"))  # llama.cpp's default: then only the factor matters
        attention = self.key(prefix + "attn_factor")
        factor = self.key(prefix + "factor", linear or 1.0)
        if attention is not None and kind == "yarn":  # multiplies the factor of yarn itself
            attention = attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
        divisors = self._tensors.get(_FREQUENCIES)
        return RotaryFacts(
            theta=float(self.key("{}.rope.freq_base", 10000.0)),
            width=width,
            positions=positions,
            kind="default" if kind in _NO_SCALING or (kind, factor) == ("linear", 1.0) else kind,
            scaling={
                "factor": factor,
                "original_max_position_embeddings": self.key(prefix + "original_context_length"),
                "attention_factor": attention,
                "beta_fast": self.key(prefix + "yarn_beta_fast"),
                "beta_slow": self.key(prefix + "yarn_beta_slow"),
            },
            divisors=None if divisors is None else np.asarray(divisors.data, np.float32).reshape(-1),
            where=f"{self.path.name}: {self.kind}.rope.*"
            + ("" if divisors is None else f" and {_FREQUENCIES}"),
        )

    def _halves(self, values: Array, *, keys: bool) -> Array:
        """Reorder rows: the file has rotated pairs side by side, transformers in two halves of a head."""
        heads = int(self.key("{}.attention.head_count"))
        heads = int(self.key("{}.attention.head_count_kv", heads)) if keys else heads
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _gguf_name(name: str) -> str:
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found and found[2] in _BLOCK_NAMES:
        return f"model.layers.{found[1]}.{_BLOCK_NAMES[found[2]]}.{found[3]}"
    return _NAMES.get(name, name)


def _names_in(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ExportError(f"{path.name}: not a safetensors file: {error}") from error
