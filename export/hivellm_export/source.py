"""Read a base model: a Hugging Face folder or a GGUF file, as float32 PyTorch weights plus tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from hivellm_export.gguf_base import read_gguf
from hivellm_export.gguf_fit import check_size
from hivellm_ort.contract import Architecture
from hivellm_ort.errors import ExpertError, ExportError, UnsupportedArchitectureError
from hivellm_ort.package.archive import sha256_file

__all__ = ["ARCHITECTURES", "BaseModel", "load_base"]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory.

    Attributes:
        name: short name, from the folder's or file's name.
        model: the Hugging Face model, float32, in evaluation mode.
        tokenizer: its fast tokenizer.
        source_sha256: digest of the weight files.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    source_sha256: str

    @property
    def architecture(self) -> Architecture:
        """The numbers that go to `decoder.json`."""
        config = self.model.config
        return Architecture(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=self.model.model.layers[0].self_attn.head_dim,
            vocab_size=self.model.lm_head.out_features,
            max_position_embeddings=config.max_position_embeddings,
        )

    @property
    def tied(self) -> bool:
        """Whether embedding and LM head are one tensor."""
        return self.model.lm_head.weight is self.model.model.embed_tokens.weight

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A parameter by its Hugging Face name, float32; shares memory with the model."""
        return self.model.get_parameter(name).detach().numpy()

    def has_bias(self, module: str) -> bool:
        """Whether the linear `module` has a bias."""
        return self.model.get_submodule(module).bias is not None

    def rotary(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine caches for every position, each float32 [max_position_embeddings, head_dim / 2]."""
        positions = torch.arange(self.model.config.max_position_embeddings)[None]
        with torch.no_grad():
            cos, sin = self.model.model.rotary_emb(torch.zeros(1), positions)
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous().numpy(), sin[0, :, :half].contiguous().numpy()


def load_base(path: Path, tokenizer: Path | None = None) -> BaseModel:
    """Load a Hugging Face folder or a `.gguf` file in float32.

    Args:
        path: the folder or the file.
        tokenizer: folder of the tokenizer to take instead of the base's own; it must fit the base.

    Raises:
        UnsupportedArchitectureError: `model_type` is not in `ARCHITECTURES`, or the model uses a variant that the
            graph does not express.
        ExportError: the path is neither, or its files cannot be read.
    """
    if path.is_file() and path.suffix.lower() == ".gguf":
        own = None if tokenizer is None else _tokenizer(tokenizer)
        with _quiet_transformers(), _reading(path):
            base = read_gguf(path, own, tokenizer)
        return BaseModel(base.name, base.model, base.tokenizer, _digest(base.files))
    if not (path / "config.json").is_file():
        raise ExportError(f"{path}: neither a .gguf file nor a Hugging Face folder with config.json")
    weights = _weight_files(path)
    if not weights:
        raise ExportError(f"{path}: no model.safetensors: only safetensors weights are read, never pickles")
    _check_model_type(path / "config.json")
    with _quiet_transformers(), _reading(path):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        _check_supported(config)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            trust_remote_code=False,
        )
        _check_weights(path, model, info)
    own = _tokenizer(tokenizer or path)
    if tokenizer is not None:
        check_size(own, tokenizer, path.name, config.vocab_size)
    return BaseModel(path.resolve().name, model.eval(), own, _digest(weights))


def _tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a Hugging Face folder."""
    with _quiet_transformers(), _reading(folder, "tokenizer"):
        # Else transformers asks whether to run code from the folder.
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ExportError(f"{folder}: the tokenizer has no tokenizer.json form; the runtime reads only that")
    return tokenizer


def _weight_files(folder: Path) -> list[Path]:
    """The files transformers loads, in the order of their names: one, or the shards that the index lists."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{index.name}: not an index of weight files: {error!r}") from error
    for name in names:
        if not (folder / str(name)).is_file():
            raise ExportError(f"{name} is missing: {index.name} lists it")
    return [folder / name for name in names]


def _check_model_type(path: Path) -> None:
    """Ask config.json itself: transformers knows neither all architectures nor what is wrong with the file."""
    try:
        document = json.loads(path.read_bytes())
        kind = document["model_type"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ExportError(f"{path}: config.json is not a JSON object with a model_type: {error!r}") from error
    _check_kind(kind)


def _check_kind(kind: Any) -> None:
    if kind not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"config.json: model_type {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )


def _check_weights(path: Path, model: nn.Module, info: dict[str, Any]) -> None:
    """Transformers fills what is missing with random numbers and passes over what is too many; both are errors."""
    for kind, fault in (
        ("missing_keys", "is missing"),
        ("mismatched_keys", "has another shape than config.json says"),
        ("unexpected_keys", "belongs to no module of this architecture"),
    ):
        names = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info[kind])
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ExportError(f"{path.name}: tensor {names[0]}{more} {fault}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ExportError(f"{path.name}: tensor {name} holds NaN or infinity")


def _check_supported(config: Any) -> None:
    _check_kind(config.model_type)
    scaling = getattr(config, "rope_scaling", None) or {}
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope not in _STATIC_ROPE:
        raise UnsupportedArchitectureError(
            f"config.json: rope_scaling type {rope!r} depends on the length of the input and is not supported; "
            f"supported are {', '.join(_STATIC_ROPE)}"
        )


def _digest(files: list[Path]) -> str:
    """SHA-256 of the one weight file, or of the files' digests in the order of their names."""
    digests = [sha256_file(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def _reading(path: Path, what: str = "base model") -> Iterator[None]:
    try:
        yield
    except ExpertError:
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and gguf raise whatever they meet
        raise ExportError(f"{path.name}: cannot be read as a {what}: {error}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Only errors: transformers warns about its own defaults on every load."""
    loggers = [logging.getLogger(name) for name in ("transformers", "gguf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
