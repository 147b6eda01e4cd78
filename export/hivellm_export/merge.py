"""Fold one adapter into the base model's weights, with PEFT itself."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import peft
import torch
from peft.utils import get_peft_model_state_dict
from torch import nn

from hivellm_export.source import BaseModel
from hivellm_ort.adapters.config import ADAPTER_CONFIG
from hivellm_ort.adapters.prepare import ADAPTER_WEIGHTS
from hivellm_ort.adapters.tensors import read_tensors
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["merge"]


def merge(base: BaseModel, folder: Path) -> tuple[BaseModel, str]:
    """Merge the PEFT adapter in `folder` into `base`, whose weights change in place.

    Returns the merged model, its source digest derived from base and adapter, and the adapter's digest.

    Raises:
        AdapterError: a file is missing or malformed, a tensor is missing or unknown, or PEFT refuses the adapter.
        BaseMismatchError: a tensor has the shape of another base model.
    """
    weights = folder / ADAPTER_WEIGHTS
    for path in (folder / ADAPTER_CONFIG, weights):
        if not path.is_file():
            raise AdapterError(f"{path.name} is missing in {folder}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT repeats its own defaults as warnings
            config = peft.PeftConfig.from_pretrained(str(folder))
            _check_config(config, folder / ADAPTER_CONFIG)
            config.inference_mode = True
            _untie(base)
            # PiSSA, OLoRA and the like rewrite the base when they are initialised, so only the second time they may.
            plain = copy.copy(config)
            if hasattr(plain, "init_lora_weights"):
                plain.init_lora_weights = False
            shell = peft.get_peft_model(base.model, plain)
            # PEFT has put the base's path here, and would look for it on the Hub when it is no folder.
            plain.base_model_name_or_path = None
            _check_tensors(weights, shell, exact=config.peft_type != peft.PeftType.ADALORA)
            shell = shell.unload()
            loaded = peft.PeftModel.from_pretrained(shell, str(folder), config=config)
            model = loaded.merge_and_unload(safe_merge=True).eval()
            _tie_again(model)
    except AdapterError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
        raise AdapterError(
            f"{ADAPTER_CONFIG}: PEFT cannot apply the adapter in {folder.name}: {error}"
        ) from error
    digest = hashlib.sha256(weights.read_bytes() + (folder / ADAPTER_CONFIG).read_bytes()).hexdigest()
    source = hashlib.sha256(f"{base.source_sha256}\n{digest}".encode()).hexdigest()
    return dataclasses.replace(base, model=model, source_sha256=source), digest


def _check_config(config: peft.PeftConfig, path: Path) -> None:
    """PEFT passes over fields that it does not know; here they are errors."""
    if config.is_prompt_learning:
        raise AdapterError(
            f"{path.name}: peft_type {config.peft_type.value} adds a prompt and no weights to merge"
        )
    known = {field.name for field in dataclasses.fields(config)}
    for name, value in json.loads(path.read_bytes()).items():
        if name not in known and value:
            raise AdapterError(
                f"{path.name}: {name} = {value!r} is not a field that PEFT {peft.__version__} knows"
            )


def _untie(base: BaseModel) -> None:
    """Give the LM head weights of its own: an adapter on one of the two must not change the other."""
    if base.tied:
        base.model.lm_head.weight = nn.Parameter(base.model.lm_head.weight.detach().clone())


def _tie_again(model: nn.Module) -> None:
    table = model.model.embed_tokens.weight
    if model.config.tie_word_embeddings and torch.equal(table, model.lm_head.weight):
        model.lm_head.weight = table


def _check_tensors(path: Path, shell: peft.PeftModel, *, exact: bool) -> None:
    """PEFT only warns about tensors that are missing or too many; here they are errors."""
    found = {key: array.shape for key, array in read_tensors(path).items()}
    wanted = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(shell).items()}
    for key, shape in wanted.items():
        if key not in found:
            raise AdapterError(f"{path.name}: tensor {key} is missing")
        if exact and found[key] != shape:
            raise BaseMismatchError(
                f"{path.name}: tensor {key} has shape {list(found[key])}, the base model and {ADAPTER_CONFIG} need "
                f"{list(shape)}"
            )
    for key in found:
        if key not in wanted:
            raise AdapterError(
                f"{path.name}: tensor {key} belongs to no module that {ADAPTER_CONFIG} targets"
            )
