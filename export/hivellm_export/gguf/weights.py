"""The weights of a GGUF file in a Hugging Face model."""

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
    """The model of `config` (see `gguf_config.read_config`) in float32, with the weights of `file`.

    Raises:
        ExportError: a tensor is missing, belongs to no module, has another shape or a type that cannot be read.
    """
    kind = file.value("general.architecture", str)
    settings = transformers.AutoConfig.for_model(**config)
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(
            settings, dtype=torch.float32, attn_implementation="eager"
        )
    model.tie_weights()  # which comes with the initialisation that was left out
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
                f"{file.name}: tensor {name} has shape {list(found)}, and the {kind}.* values make it {list(wanted)}"
            )
        values = file.array(name)
        if kind == "llama" and ".attn_q." in name:
            values = _halves(values, config["num_attention_heads"])
        elif kind == "llama" and ".attn_k." in name:
            values = _halves(values, config["num_key_value_heads"])
        state[place] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False, assign=True)  # every parameter has a place: see `_places`
    model.tie_weights()
    if factors:
        _divide_frequencies(model, file)
    return model.eval()


def _places(model: nn.Module, kind: str, config: dict[str, Any]) -> dict[str, str]:
    """The name in the file to the model's name, for every parameter."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    places = {}
    for parameter, _ in model.named_parameters():  # a tied head is the embedding, and named once
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"gguf has no name for {parameter}: update the gguf package")
        places[name] = parameter
    return places


def _halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from llama.cpp's order, pairs that are rotated together, to that of two halves of a head."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _divide_frequencies(model: nn.Module, file: GgufFile) -> None:
    """Divide the inverse frequencies by the factors of Llama 3.1 and later, which the file has as a tensor."""
    rotary = model.model.rotary_emb
    factors = torch.from_numpy(file.array(_ROPE_FACTORS))
    if factors.shape != rotary.inv_freq.shape or not (factors > 0).all():
        raise ExportError(
            f"{file.name}: tensor {_ROPE_FACTORS} must hold {rotary.inv_freq.numel()} numbers above 0, one for each "
            "pair of a head"
        )
    rotary.inv_freq = rotary.inv_freq / factors
    rotary.original_inv_freq = rotary.inv_freq
