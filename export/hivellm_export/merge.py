"""Fold one adapter into the base model's weights, with PEFT itself."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path

import peft
import safetensors
from peft.utils import get_peft_model_state_dict

from hivellm_export.source import BaseModel
from hivellm_ort.adapters.config import ADAPTER_CONFIG
from hivellm_ort.adapters.prepare import ADAPTER_WEIGHTS
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
            config.inference_mode = True
            shell = peft.get_peft_model(base.model, config)
            _check_tensors(weights, shell, exact=config.peft_type != peft.PeftType.ADALORA)
            shell = shell.unload()
            loaded = peft.PeftModel.from_pretrained(shell, str(folder), config=config)
            model = loaded.merge_and_unload(safe_merge=True).eval()
    except AdapterError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise AdapterError(
            f"{ADAPTER_CONFIG}: PEFT cannot apply the adapter in {folder.name}: {error}"
        ) from error
    digest = hashlib.sha256(weights.read_bytes() + (folder / ADAPTER_CONFIG).read_bytes()).hexdigest()
    source = hashlib.sha256(f"{base.source_sha256}\n{digest}".encode()).hexdigest()
    return dataclasses.replace(base, model=model, source_sha256=source), digest


def _check_tensors(path: Path, shell: peft.PeftModel, *, exact: bool) -> None:
    """PEFT only warns about tensors that are missing or too many; here they are errors."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{path.name} is truncated or not a safetensors file: {error}") from error
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
