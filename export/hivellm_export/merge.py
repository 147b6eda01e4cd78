"""Merge one adapter into the weights of the base model, with PEFT."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import save_file
from torch import nn

from hivellm_export.base_model import BaseModel
from hivellm_export.merged_vocabulary import fit_vocabulary
from hivellm_ort.adapters.config import NEUTRAL, check_fields
from hivellm_ort.adapters.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter_files,
    read_config_document,
)
from hivellm_ort.adapters.prepare import LARGEST
from hivellm_ort.adapters.tensors import EMBEDDINGS, AdapterTensors, plain_name
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["merge"]

_EMBED, _HEAD = EMBEDDINGS
_LONGEST = 1000  # characters of an error
_EMPTY: tuple[Any, ...] = (None, False, "", 0, [], {})


def merge(base: BaseModel, folder: Path) -> tuple[BaseModel, str]:
    """Merge the PEFT adapter in `folder` into `base`, whose weights change in place.

    If the adapter was trained with new tokens, the merged base gets their rows of embedding and LM head, and the
    adapter's tokenizer.

    Returns:
        The merged model, whose `source_sha256` comes from base and adapter, and the digest of the adapter.

    Raises:
        AdapterError: A file is missing or malformed, a tensor is missing or unknown, or PEFT refuses the adapter.
        BaseMismatchError: A tensor has the shape of another base model.
    """
    check_adapter_files(folder)
    weights = folder / ADAPTER_WEIGHTS
    config = _config(folder / ADAPTER_CONFIG)
    saved = getattr(config, "modules_to_save", None) or ()
    tensors = AdapterTensors.from_file(weights, saved=(saved,) if isinstance(saved, str) else tuple(saved))
    tied = _untie(base)
    tokenizer = fit_vocabulary(base, folder, tensors, config)
    model = _merged(base.model, config, tensors)
    _check_size(model)
    _tie_again(model, tied)
    digest = hashlib.sha256(weights.read_bytes() + (folder / ADAPTER_CONFIG).read_bytes())
    if tokenizer is not base.tokenizer:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    source = hashlib.sha256(f"{base.source_sha256}\n{digest.hexdigest()}".encode()).hexdigest()
    merged = dataclasses.replace(base, model=model, source_sha256=source, tokenizer=tokenizer)
    return merged, digest.hexdigest()


def _merged(model: nn.Module, config: peft.PeftConfig, tensors: AdapterTensors) -> nn.Module:
    """Merge the adapter. PEFT reads it from a copy with the tensor names that PEFT itself writes."""
    # PiSSA, OLoRA and others rewrite the base when they are initialised. Only the second initialisation may do so.
    plain = copy.copy(config)
    if hasattr(plain, "init_lora_weights"):
        plain.init_lora_weights = False
    with _peft("PEFT cannot apply the adapter"):
        shell = peft.get_peft_model(model, plain)
        wanted = get_peft_model_state_dict(shell, save_embedding_layers=False)
    named = _named_as_peft(tensors, wanted, config)
    with tempfile.TemporaryDirectory() as work, _peft("PEFT cannot apply the adapter"):
        save_file(named, Path(work) / ADAPTER_WEIGHTS, {"format": "pt"})
        loaded = peft.PeftModel.from_pretrained(shell.unload(), work, config=config)
        merged: nn.Module = loaded.merge_and_unload(safe_merge=True).eval()
    return merged


def _check_size(model: nn.Module) -> None:
    """Refuse weights that would make every answer infinite, with the limit for swapped adapters."""
    for name, parameter in model.named_parameters():
        if not float(parameter.detach().abs().max()) <= LARGEST:  # also true for NaN
            raise AdapterError(
                f"{ADAPTER_WEIGHTS}: merged as {ADAPTER_CONFIG} says, {name} holds NaN or numbers beyond "
                f"{LARGEST:g}: the scale is too large, or the adapter is damaged"
            )


@contextlib.contextmanager
def _peft(fault: str) -> Iterator[None]:
    """Turn any error of PEFT into an AdapterError. Its warnings are about its own defaults, or checked here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        # Messages of PyTorch have several lines, and may end in a C++ stack.
        words = " ".join(str(error).partition("Exception raised from")[0].split())[:_LONGEST]
        raise AdapterError(f"{ADAPTER_CONFIG}: {fault}: {words or type(error).__name__}") from error


def _config(path: Path) -> peft.PeftConfig:
    """Read the configuration. PEFT ignores unknown fields; here they are errors."""
    where = path.name
    document = read_config_document(path)
    kind = document.get("peft_type")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind.upper()) if isinstance(kind, str) else None
    if config_class is None:
        raise AdapterError(f"{where}: PEFT {peft.__version__} does not know peft_type {kind!r}")
    try:
        check_fields(document)
    except AdapterError as error:
        raise AdapterError(f"{where}: {error}") from error
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    known -= {"peft_type", "runtime_config"}
    for name, value in document.items():
        if name not in known | NEUTRAL and value not in _EMPTY:
            raise AdapterError(
                f"{where}: {name} = {value!r} is not a field that PEFT {peft.__version__} knows"
            )
    with _peft("PEFT refuses it"):
        # Null means not set, as for swapped adapters.
        config: peft.PeftConfig = config_class(
            **{name: value for name, value in document.items() if name in known and value is not None}
        )
    if config.is_prompt_learning:
        raise AdapterError(f"{where}: peft_type {kind} adds a prompt and no weights to merge")
    config.inference_mode = True
    return config


def _untie(base: BaseModel) -> bool:
    """Give the LM head its own weights, so that an adapter on the embedding does not change it.

    Returns:
        Whether the two were one tensor.
    """
    tied = base.tied
    if tied:
        base.model.lm_head.weight = nn.Parameter(base.model.lm_head.weight.detach().clone())
    return tied


def _tie_again(model: nn.Module, tied: bool) -> None:
    """Make embedding and LM head one tensor again if they still are equal, and restore the configuration."""
    table = model.model.embed_tokens.weight
    # When PEFT ties a head, it makes a new one and swaps its sizes.
    model.lm_head.out_features, model.lm_head.in_features = model.lm_head.weight.shape
    model.config.tie_word_embeddings = tied and torch.equal(table, model.lm_head.weight)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = table


def _named_as_peft(
    tensors: AdapterTensors, wanted: dict[str, torch.Tensor], config: peft.PeftConfig
) -> dict[str, Any]:
    """The adapter's tensors by PEFT's names. Missing and unknown ones, of which PEFT only warns, are errors."""
    exact = config.peft_type != peft.PeftType.ADALORA  # AdaLoRA prunes ranks
    named = {}
    for key, value in wanted.items():
        name, shape = plain_name(key), tuple(value.shape)
        if name not in tensors.arrays and name == _HEAD and getattr(config, "ensure_weight_tying", False):
            name = _EMBED  # PEFT stores a tied table once
        if name not in tensors.arrays:
            raise AdapterError(f"{ADAPTER_WEIGHTS}: tensor {key} is missing")
        found = tensors.arrays[name]
        if exact and found.shape != shape:
            raise BaseMismatchError(
                f"{ADAPTER_WEIGHTS}: tensor {tensors.keys[name]} has shape {list(found.shape)}, the base model and "
                f"{ADAPTER_CONFIG} need {list(shape)}"
            )
        named[key] = found
    used = {plain_name(key) for key in wanted}
    for name, array in tensors.arrays.items():
        # For tied tables, PEFT also stores the trained embedding as that of the head.
        twin = tensors.arrays.get(f"model.embed_tokens.{name.removeprefix('lm_head.')}")
        if name not in used and not (twin is not None and np.array_equal(array, twin)):
            raise AdapterError(
                f"{ADAPTER_WEIGHTS}: tensor {tensors.keys[name]} belongs to no module that {ADAPTER_CONFIG} targets"
            )
    return named
