"""A Hugging Face folder: its configuration, weights, tokenizer and name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn

from hivellm_export.huggingface.config import check_config, checked_token_ids
from hivellm_export.huggingface.files import read_object
from hivellm_export.huggingface.tokenizer import load_tokenizer
from hivellm_ort.errors import ExportError

__all__ = ["BaseFolder", "folder_name"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CACHED = re.compile(r"models--(?:[^/\\]+?--)?(.+)")  # models--Qwen--Qwen3-0.6B, models--gpt2
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class BaseFolder:
    """A base model's folder. Its small files are checked; weights and tokenizer are loaded on demand.

    Attributes:
        path: The folder.
        document: Its `config.json`.
        config: Its fields that change the computation, as transformers 4.57 reads them.
        weights: The weight files, in the order of their names.
        eos_token_ids: Ids that end an answer, from `generation_config.json`. Its settings for sampling are not used:
            requests have their own.
    """

    path: Path
    document: Mapping[str, Any]
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> BaseFolder:
        """Check the small files of `path`.

        Raises:
            UnsupportedArchitectureError: A family, field or value of `config.json` is not supported.
            ExportError: A file is missing or malformed, or the folder is that of an adapter.
        """
        document = read_object(path / _CONFIG)
        config = check_config(document)
        if (path / "adapter_config.json").is_file():
            raise ExportError(
                f"{path.name}: adapter_config.json says that the folder is an adapter's: give the folder of its base "
                "model, or remove the file if the adapter is merged into these weights"
            )
        generation = read_object(path / _GENERATION) if (path / _GENERATION).is_file() else {}
        ends = checked_token_ids(
            generation.get("eos_token_id"), f"{_GENERATION}: eos_token_id", config["vocab_size"]
        )
        return cls(path, document, config, tuple(_weight_files(path)), tuple(ends))

    @property
    def name(self) -> tuple[str, str]:
        """The model's name and its origin, from `folder_name`."""
        return folder_name(self.path, self.document)

    def load_model(self, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """Load the model.

        Args:
            options: Options of `from_pretrained`.

        Returns:
            The model, and what transformers reports about missing and unknown tensors.

        Raises:
            ExportError: The weights contradict `config.json`.
        """
        config = transformers.AutoConfig.for_model(**self.config)
        tensors = _tensors(self.weights)
        if config.tie_word_embeddings and not _same(tensors.get(_HEAD), tensors.get(_TABLE)):
            raise ExportError(
                f"{_CONFIG}: tie_word_embeddings is true, but {_HEAD} differs from {_TABLE}: set it to false if the "
                "model has its own head"
            )
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, info = kind.from_pretrained(None, config=config, state_dict=tensors, **options)
        ids = list(self.eos_token_ids)
        model.generation_config.eos_token_id = ids or model.generation_config.eos_token_id
        return model, info

    def load_tokenizer(self, config: Any) -> Any:
        """Load the tokenizer, with `hivellm_export.huggingface.tokenizer.load_tokenizer`."""
        return load_tokenizer(self.path, config)


def _weight_files(folder: Path) -> list[Path]:
    """The weight files in the order of their names: one, or the shards that the index lists."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise ExportError(f"{folder}: no model.safetensors: only safetensors weights are read, never pickles")
    shards = read_object(folder / _INDEX).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise ExportError(
            f"{_INDEX}: not an index of weight files: weight_map must name a file for each tensor"
        )
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{_INDEX}: {name!r} is not the name of a file in the same folder")
        if not (folder / name).is_file():
            raise ExportError(f"{name} is missing: {_INDEX} lists it")
    return [folder / name for name in names]


def _tensors(files: tuple[Path, ...]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            tensors.update({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    return tensors


def _same(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    return one is None or two is None or (one.shape == two.shape and torch.equal(one, two))


def folder_name(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """Find the name of the model in a folder.

    This is the folder's own name, after links and `.` are resolved. For the hub's cache,
    `models--ORG--NAME/snapshots/COMMIT`, it is `NAME`. Another folder that is named by a digest takes the last part
    of `_name_or_path`, or else the name of the folder above.

    Args:
        folder: An existing folder.
        config: Its `config.json`.

    Returns:
        The name, and where it comes from; the latter is empty for the folder's own name.
    """
    path = folder.resolve()
    cached = _repository(path.parts)
    if cached is not None:
        return cached, f"the hub's cache folder models--…--{cached}"
    if not _DIGEST.fullmatch(path.name):
        # ModelScope's cache writes a dot as three underscores.
        return path.name.replace("___", "."), ""
    original = config.get("_name_or_path")
    if isinstance(original, str) and original.strip("/\\."):
        parts = PurePosixPath(original.replace("\\", "/")).parts
        name = _repository(parts) or parts[-1]
        if not _DIGEST.fullmatch(name):
            return name, "_name_or_path of config.json, because the folder is named by a digest"
    above = next((part for part in reversed(path.parent.parts) if part not in ("snapshots", path.anchor)), "")
    return (
        above or path.name,
        "the folder above, because the folder itself is named by a digest" if above else "",
    )


def _repository(parts: tuple[str, ...]) -> str | None:
    """The repository's name in a path of the hub's cache: `…/models--ORG--NAME/snapshots/COMMIT`."""
    if len(parts) < 3 or parts[-2] != "snapshots":
        return None
    found = _CACHED.fullmatch(parts[-3])
    return found[1] if found else None
