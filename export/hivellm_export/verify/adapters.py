"""Compare the effect of an adapter on each module in the runtime and in PEFT."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from hivellm_ort.contract import Site
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import ExportError
from hivellm_ort.textfile import decode_text

__all__ = ["check_adapter", "load_peft", "merged_by_peft"]

Array = NDArray[np.float32]

_TABLES = ("embed_tokens.weight", "lm_head.weight")
_MISSING = "missing adapter keys"  # part of PEFT's warning
_ROWS = 4  # random inputs per module
# Allowed errors by float type of adapter inputs: relative to the adapter's effect, and to the module's output.
_ALLOWED = {"float32": (1e-3, 2e-5), "float16": (1e-2, 4e-3), "bfloat16": (5e-2, 3e-2)}


def load_peft(model: nn.Module, folder: Path, *, tables: bool) -> peft.PeftModel:
    """Load an adapter with PEFT. `unload` of the result restores the model.

    Args:
        model: A model of transformers.
        folder: The adapter's folder.
        tables: Whether to load embedding and LM head from the file too. They change the model for good.

    Returns:
        PEFT's model around `model`.

    Raises:
        Exception: PEFT cannot read or apply the adapter; the type depends on PEFT.
    """
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        text = decode_text(
            (folder / CONFIG_NAME).read_bytes()
        )  # PEFT reads only UTF-8 without a byte order mark
        Path(temporary, CONFIG_NAME).write_text(text, encoding="utf-8")
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        if not tables:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_TABLES)}
        save_file(tensors, Path(temporary, SAFETENSORS_WEIGHTS_NAME), {"format": "pt"})
        adapted = peft.PeftModel.from_pretrained(model, temporary).eval()
    if any(
        _MISSING in str(warning.message) for warning in told
    ):  # PEFT only warns, and uses weights that change nothing
        adapted.unload()
        raise ValueError("the names of its tensors are not those that PEFT expects")
    return adapted


def merged_by_peft(adapted: peft.PeftModel) -> nn.Module:
    """Merge the adapter of `load_peft` into the weights of its model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about embedding and LM head as two tensors, which is intended
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    return merged


def check_adapter(
    adapted: peft.PeftModel, bound: BoundAdapter, sites: Sequence[Site], *, where: str
) -> float:
    """Compare the outputs of each module for random inputs, with the bound adapter and with PEFT's.

    Args:
        adapted: From `load_peft`, on the base model in float32.
        bound: The adapter as the graph gets it.
        sites: The sites of the graph.
        where: The expert, for messages.

    Returns:
        The largest error of a module, relative to the effect of the adapter there.

    Raises:
        ExportError: A module differs. The message names it.
    """
    base = adapted.base_model.model
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for site in sites:
        share, floor = _ALLOWED[bound.inputs[site.lora_A].element_type.name]
        x = torch.randn(_ROWS, site.in_features, generator=generator)
        values = {name: torch.from_numpy(bound.inputs[name].numpy()) for name in site.inputs}
        low = (x @ values[site.lora_A]) * values[site.gate]
        begin = 0
        for part in site.parts:
            columns = slice(begin, begin + part.size)
            begin += part.size
            layer = base.get_submodule(part.module)
            plain = layer.base_layer if isinstance(layer, BaseTunerLayer) else layer
            with torch.no_grad():
                wanted = _of_peft(base, part.module, layer, x)
                product = x @ plain.weight.T
                without = product if plain.bias is None else product + plain.bias
                given = values[site.scale][:, columns] * product + low @ values[site.lora_B][:, columns]
                if plain.bias is not None:
                    given = given + plain.bias
                if part.bias:
                    given = given + values[site.bias_input][:, columns]
            effect, error = float((wanted - without).norm()), float((given - wanted).norm())
            if not error <= share * effect + floor * float(wanted.norm()):
                size = float((given - without).norm())
                told = f"{size / effect:.3f} times as large as" if effect else "present, but not in"
                raise ExportError(
                    f"{where}: the adapter of module {part.module} differs from PEFT's by "
                    f"{error / max(effect, 1e-12):.2%} of its effect, which is {told} PEFT's"
                )
            worst = max(worst, error / effect if effect > floor * float(wanted.norm()) else 0.0)
    return worst


def _of_peft(base: nn.Module, name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of a module in PEFT, with the scaling that IA3 applies to the input of the next module.

    IA3 scales the input of `down_proj`, which is the product of the outputs of `gate_proj` and `up_proj`. The runtime
    scales the output of `up_proj` instead.
    """
    output: Any = layer(x)
    if name.endswith(".up_proj"):
        behind = base.get_submodule(name.removesuffix("up_proj") + "down_proj")
        if getattr(behind, "is_feedforward", False):
            output = output * behind.ia3_l[behind.active_adapters[0]].reshape(1, -1)
    elif getattr(layer, "is_feedforward", False):
        output = layer.base_layer(x)
    result: torch.Tensor = output
    return result
