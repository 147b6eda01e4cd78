"""Load the weights of a GGUF file into a Hugging Face model."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers.modeling_utils import no_init_weights

from hivellm_export.gguf.file import GgufFile
from hivellm_ort.errors import ExportError

__all__ = ["read_model"]

_ROPE_FACTORS = "rope_freqs.weight"


def read_model(file: GgufFile, config: dict[str, Any]) -> nn.Module:
    """Make the model and load its weights.

    Args:
        file: The GGUF file.
        config: From `hivellm_export.gguf.config.read_config`, checked by `check_config`.

    Returns:
        The model in float32.

    Raises:
        ExportError: A tensor is missing, belongs to no module, or has a wrong shape or a type that cannot be read.
    """
    kind = file.value("general.architecture", str)
    settings = transformers.AutoConfig.for_model(**config)
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(
            settings, dtype=torch.float32, attn_implementation="eager"
        )
    model.tie_weights()  # normally part of the initialisation, which was skipped
    places = _places(model, kind, config)
    factors = file.tensors.keys() & {_ROPE_FACTORS} if kind == "llama" else set()
    for name in file.tensors:
        if name not in places and name not in factors:
            raise ExportError(f"{file.name}: tensor {name} belongs to no module of this architecture")
    state = {}
    parameters = dict(model.named_parameters())
    for name, place in places.items():
        if name not in file.tensors:
            raise ExportError(f"{file.name}: tensor {name} is missing")
        found = tuple(int(size) for size in reversed(file.tensors[name].shape))
        wanted = tuple(parameters[place].shape)
        if found != wanted:
            raise ExportError(
                f"{file.name}: tensor {name} has shape {list(found)}, but the {kind}.* keys require {list(wanted)}"
            )
        values = file.array(name)
        if kind == "llama" and ".attn_q." in name:
            values = _halves(values, config["num_attention_heads"])
        elif kind == "llama" and ".attn_k." in name:
            values = _halves(values, config["num_key_value_heads"])
        state[place] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False, assign=True)  # `_places` has every parameter
    model.tie_weights()
    if factors:
        _divide_frequencies(model, file)
    return model.eval()


def _places(model: nn.Module, kind: str, config: dict[str, Any]) -> dict[str, str]:
    """For every parameter, its name in the file and its name in the model."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    places = {}
    for parameter, _ in model.named_parameters():  # a tied head is the embedding, and listed once
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"gguf has no name for {parameter}: update the gguf package")
        places[name] = parameter
    return places


def _halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows of q or k: llama.cpp has rotated pairs side by side, transformers in two halves of a head."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _divide_frequencies(model: nn.Module, file: GgufFile) -> None:
    """Divide the inverse frequencies by the factors of Llama 3.1 and later, a tensor of the file."""
    rotary = model.model.rotary_emb
    factors = torch.from_numpy(file.array(_ROPE_FACTORS))
    if factors.shape != rotary.inv_freq.shape or not (factors > 0).all():
        raise ExportError(
            f"{file.name}: tensor {_ROPE_FACTORS} must hold {rotary.inv_freq.numel()} numbers above 0, one for each "
            "pair of channels"
        )
    rotary.inv_freq = rotary.inv_freq / factors
    rotary.original_inv_freq = rotary.inv_freq
