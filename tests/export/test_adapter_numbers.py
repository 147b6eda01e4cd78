"""Numbers of adapter_config.json that would make a package which cannot load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exporting import CONFIG, WEIGHTS, Refusal, copied, edit_json
from safetensors.numpy import load_file, save_file

ModelFolder = Callable[[str], Path]


@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("lora_alpha", "lora_alpha", 1e308),
        ("lora_alpha", "lora_alpha", 1e39),
        ("lora_alpha", "lora_alpha", -8),
        ("alpha_pattern", "alpha_pattern['q_proj']", 1e308),
        ("alpha_pattern", "alpha_pattern['q_proj']", -1),
    ],
)
def test_scale(
    field: str,
    name: str,
    value: float,
    options: tuple[str, ...],
    expert_folder: Callable[..., Path],
    model_folder: ModelFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A scale that float32 does not hold, or a negative one, is refused by the field's name."""
    folder = copied(expert_folder("lora"), tmp_path / "expert")
    fields: dict[str, Any] = {field: {"q_proj": value} if field == "alpha_pattern" else value}
    edit_json(folder / CONFIG, **fields)
    kind, message = refused(model_folder("llama"), folder, options=options)
    assert "AdapterError" == kind
    assert f"expert/{CONFIG}: {name} = '{value}': a finite number from 0 to 3.4e+38 is expected" == message


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_product(
    kind: str,
    expert_folder: Callable[..., Path],
    model_folder: ModelFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A scale that float32 holds, and whose product with the tensors it does not hold, is refused too."""
    folder = copied(expert_folder(kind), tmp_path / "expert")
    weights = folder / WEIGHTS
    save_file({key: array * 1e4 for key, array in load_file(weights).items()}, weights)
    edit_json(folder / CONFIG, lora_alpha=3e38)
    error, message = refused(model_folder("llama"), folder)
    assert "AdapterError" == error
    assert "hold NaN or infinity: the scale is too large, or the adapter is damaged" in message
