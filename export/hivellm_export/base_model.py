"""Read a base model: a Hugging Face folder or a GGUF file, as float32 PyTorch weights plus tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hivellm_export.gguf.model import read_gguf
from hivellm_export.huggingface.files import check_links
from hivellm_export.huggingface.folder import BaseFolder
from hivellm_export.huggingface.tokenizer import check_size, load_tokenizer
from hivellm_export.libraries import only_errors
from hivellm_ort.contract import Architecture
from hivellm_ort.errors import ExpertError, ExportError
from hivellm_ort.package.archive import sha256_file

__all__ = ["BaseModel", "load_base"]

_LOGGERS = ("transformers", "gguf")  # they warn about their own defaults on every load


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory.

    Attributes:
        name: Short name, from the name of the folder or file.
        model: The Hugging Face model, float32, in evaluation mode.
        tokenizer: Its fast tokenizer.
        source_sha256: Digest of the weight files.
        name_origin: Where the name comes from; empty if from the folder or file itself.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    source_sha256: str
    name_origin: str = ""

    @property
    def architecture(self) -> Architecture:
        """The architecture for `decoder.json`."""
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
        """A parameter by its name in transformers, float32. It shares memory with the model."""
        return self.model.get_parameter(name).detach().numpy()

    def has_bias(self, module: str) -> bool:
        """Whether the linear `module` has a bias."""
        return self.model.get_submodule(module).bias is not None

    def rotary(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine tables, each float32 [max_position_embeddings, head_dim / 2]."""
        positions = torch.arange(self.model.config.max_position_embeddings)[None]
        with torch.no_grad():
            cos, sin = self.model.model.rotary_emb(torch.zeros(1), positions)
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous().numpy(), sin[0, :, :half].contiguous().numpy()


def load_base(path: Path, tokenizer: Path | None = None) -> BaseModel:
    """Load a Hugging Face folder or a `.gguf` file in float32.

    Args:
        path: The folder or file.
        tokenizer: Folder of a tokenizer that replaces the base's own. It must fit the base.

    Raises:
        UnsupportedArchitectureError: `model_type` is not supported, or the graph cannot express a variant
            that the model uses.
        ExportError: The path is neither a folder nor a `.gguf` file, a file cannot be read, or a link leads out of
            the folder.
    """
    for folder, sign in ((path, "config.json"), (tokenizer, "")):
        if folder is not None and folder.is_dir() and os.path.lexists(folder / sign):
            check_links(folder)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _load_gguf(path, tokenizer)
    if (path / "config.json").is_file():
        return _load_folder(path, tokenizer)
    snapshots = sorted([*path.glob("snapshots/*/config.json"), *path.glob("*/config.json")])
    hint = f"; one that has it is {snapshots[-1].parent}" if snapshots else ""
    raise ExportError(f"{path}: neither a .gguf file nor a Hugging Face folder with config.json{hint}")


def _load_folder(path: Path, other: Path | None) -> BaseModel:
    path = path.resolve()  # messages need a name, and `.` has none
    with only_errors(*_LOGGERS), _reading(path):
        folder = BaseFolder.open(path)
        model, info = folder.load_model(
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
        _check_weights(path, model, info)
    with only_errors(*_LOGGERS), _reading(other or path, "tokenizer"):
        if other is None:
            tokenizer = folder.load_tokenizer(model.config)
        else:
            tokenizer = load_tokenizer(other, model.config)
            check_size(tokenizer, other, path.name, model.config.vocab_size)
    name, origin = folder.name
    return BaseModel(name, model.eval(), tokenizer, _digest([*folder.weights]), origin)


def _load_gguf(path: Path, other: Path | None) -> BaseModel:
    with only_errors(*_LOGGERS), _reading(path):
        base = read_gguf(path, other)
    return BaseModel(base.name, base.model, base.tokenizer, _digest(base.files))


def _check_weights(path: Path, model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse missing tensors, which transformers fills with random numbers, and unknown ones, which it ignores."""
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


def _digest(files: list[Path]) -> str:
    """SHA-256 of one weight file, or of the digests of several in the order of their names."""
    digests = [sha256_file(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def _reading(path: Path, what: str = "base model") -> Iterator[None]:
    try:
        yield
    except ExpertError:
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and gguf raise errors of many types
        reason = " ".join(str(error).split())  # an error is one line
        raise ExportError(f"{path.name}: cannot be read as a {what}: {reason}") from error
