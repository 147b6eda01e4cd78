"""Merge an adapter that was trained with new tokens: the base gets their rows and the adapter's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerFast

from hivellm_export.base_model import BaseModel
from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.tensors import EMBEDDINGS, AdapterTensors
from hivellm_ort.errors import AdapterError, BaseMismatchError
from hivellm_ort.loading.adapter_tokenizer import (
    TOKENIZER,
    TokenizerDifference,
    compare_tokenizers,
    read_tokenizer,
)
from hivellm_ort.text.template_source import read_template_source

__all__ = ["fit_vocabulary"]

_LOG = logging.getLogger("hivellm_ort")
_EMBED, _HEAD = EMBEDDINGS
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def fit_vocabulary(base: BaseModel, folder: Path, tensors: AdapterTensors, config: peft.PeftConfig) -> Any:
    """Give the base the rows of embedding and LM head that the adapter was trained with.

    Args:
        base: The base. Its embedding and LM head are two tensors, and change in place.
        folder: The adapter's folder.
        tensors: The adapter's weights.
        config: The adapter's configuration.

    Returns:
        The tokenizer of the merged base: the adapter's if it has other tokens, else the base's.

    Raises:
        BaseMismatchError: The adapter has another vocabulary, but not all rows for it.
        AdapterError: The adapter's tokenizer gives tokens of the base other ids.
    """
    before, rows = base.model.lm_head.out_features, _rows(base, tensors, config)
    tables = {
        _EMBED: tensors.embeddings.get(_EMBED),
        # PEFT stores a tied table once.
        _HEAD: tensors.embeddings.get(_HEAD, tensors.embeddings.get(_EMBED) if _is_tied(base) else None),
    }
    for name, values in tables.items():
        if values is None and rows != before:
            _check_new_rows(base, name, rows, tensors, config)
            old = base.tensor(name)
            values = np.zeros((rows, old.shape[1]), np.float32)
            values[: len(old)] = old[:rows]
        if values is not None:
            if values.shape[1:] != base.tensor(name).shape[1:]:
                raise BaseMismatchError(
                    f"{ADAPTER_WEIGHTS}: tensor {tensors.keys.get(name, name)} has shape {list(values.shape)}, the "
                    f"base model's is {list(base.tensor(name).shape)}"
                )
            _replace(base.model.get_submodule(name.removesuffix(".weight")), values)
    base.model.config.vocab_size = rows
    return _tokenizer(
        base, folder, rows, whole=all(name in {*tensors.arrays, *tensors.embeddings} for name in tables)
    )


def _rows(base: BaseModel, tensors: AdapterTensors, config: peft.PeftConfig) -> int:
    """The size of the vocabulary that the adapter was trained with."""
    before = base.model.lm_head.out_features
    found = {
        tensors.keys[name]: table[name].shape[0]
        for table in (tensors.embeddings, tensors.arrays)
        for name in EMBEDDINGS
        if name in table and table[name].ndim
    }
    sizes = set(found.values())
    if len(sizes) > 1:
        listed = ", ".join(f"{key} {size}" for key, size in found.items())
        raise BaseMismatchError(f"{ADAPTER_WEIGHTS}: the rows of embedding and LM head differ: {listed}")
    if sizes:
        return sizes.pop()
    trained = [index for indices in _trained(config).values() for index in indices]
    return max([before - 1, *trained]) + 1


def _check_new_rows(
    base: BaseModel, name: str, rows: int, tensors: AdapterTensors, config: peft.PeftConfig
) -> None:
    """Check that the adapter has every row of a table that the base lacks."""
    before = base.model.lm_head.out_features
    module = name.split(".")[-2]
    trained = _trained(config)
    own = set(trained.get(module, trained.get("embed_tokens", ()) if _is_tied(base) else ()))
    if name not in tensors.arrays and (rows - before > len(own) or not own.issuperset(range(before, rows))):
        raise BaseMismatchError(
            f"{ADAPTER_CONFIG}: the adapter was trained with a vocabulary of {rows}, the base has {before}, and "
            f"{ADAPTER_WEIGHTS} does not have the rows of {module} for it: save the adapter again with "
            "save_embedding_layers=True"
        )


def _trained(config: peft.PeftConfig) -> Mapping[str, list[int]]:
    """The indices in `trainable_token_indices`, by module. A list is for the embedding."""
    value = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or {}
    return value if isinstance(value, dict) else {"embed_tokens": list(value)}


def _is_tied(base: BaseModel) -> bool:
    return bool(base.model.config.tie_word_embeddings)


def _replace(module: nn.Module, values: NDArray[np.float32]) -> None:
    module.weight = nn.Parameter(torch.from_numpy(values.copy()))
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(values)
    else:
        module.out_features = len(values)


def _tokenizer(base: BaseModel, folder: Path, rows: int, *, whole: bool) -> Any:
    own = read_tokenizer(folder)
    found = (
        compare_tokenizers(own, base.tokenizer.backend_tokenizer)
        if own is not None
        else TokenizerDifference({}, (), None)
    )
    if not found:
        return base.tokenizer
    if found.moved and not whole:
        raise AdapterError(
            f"{TOKENIZER}: {found.moved[0]!a} has another id in the base model's tokenizer, and the adapter has no "
            "embedding and LM head of its own: it belongs to another base model"
        )
    beyond = [token for token, id_ in found.added.items() if id_ >= rows]
    if beyond:
        _LOG.warning(
            "%s: %s has an id beyond the %d rows of the embedding: the base's tokenizer is used",
            folder / TOKENIZER,
            ascii(beyond[0]),
            rows,
        )
        return base.tokenizer
    template = read_template_source(folder)
    special = {"bos_token": base.tokenizer.bos_token, "eos_token": base.tokenizer.eos_token}
    special |= {name: template.tokens[name] for name in _SPECIAL if name in template.tokens}
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        chat_template=template.source if template.file is not None else base.tokenizer.chat_template,
        **{name: token for name, token in special.items() if token is not None},
    )
