"""Numbers of adapter_config.json that would make a package which cannot load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from support.exporting import CONFIG, WEIGHTS, Refusal, copied, edit_json, edit_tensors

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
    assert "hold NaN or numbers beyond 1e+18: the scale is too large, or the adapter is damaged" in message


_SCALE = "a finite number from 0 to 3.4e+38"
_RANK = "a whole number up to 65536"
_NO_JSON = "no number that JSON has"
FIELDS: list[tuple[str, Any, str]] = [
    ("lora_alpha", 10**400, _NO_JSON),
    ("lora_alpha", float("nan"), _NO_JSON),
    ("lora_alpha", float("inf"), _NO_JSON),
    ("lora_alpha", True, _SCALE),
    ("lora_alpha", "16", _SCALE),
    ("lora_alpha", [16], _SCALE),
    ("r", 10**400, _NO_JSON),
    ("r", True, _RANK),
    ("r", float("nan"), _NO_JSON),
    ("r", 4.5, _RANK),
    ("r", 65537, _RANK),
    ("use_rslora", "false", "true or false"),
    ("use_dora", "false", "true or false"),
    ("lora_bias", 2, "true or false"),
]


@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize(("field", "value", "expected"), FIELDS, ids=lambda value: str(value)[:9])
def test_type(
    field: str,
    value: Any,
    expected: str,
    options: tuple[str, ...],
    expert_folder: Callable[..., Path],
    model_folder: ModelFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A number or flag of another type, or beyond all sizes, is refused by the field's name."""
    folder = copied(expert_folder("lora"), tmp_path / "expert")
    edit_json(folder / CONFIG, **{field: value})
    kind, message = refused(model_folder("llama"), folder, options=options)
    assert "AdapterError" == kind
    if expected == _NO_JSON:  # the reader of JSON says where in the file it is
        assert re.fullmatch(rf"expert/{CONFIG}:1:\d+: /{field}: .*number.*; write .*", message)
    else:
        assert f"expert/{CONFIG}: {field} = {str(value)[:80]!r}: {expected} is expected" == message


DAMAGED: list[tuple[str, str, float]] = [
    ("lora", "lora_A", 3e38),
    ("lora", "lora_", 1e20),
    ("lora", "lora_", 3e15),
    ("dora", "lora_magnitude", 3e38),
    ("dora", "lora_magnitude", float("nan")),
    ("dora", "weight", 1e20),
    ("ia3", "ia3_l", 3e38),
    ("ia3", "ia3_l", float("-inf")),
    ("adalora", "lora_E", 3e38),
]


@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize(("kind", "tensor", "value"), DAMAGED)
def test_damaged_tensors(
    kind: str,
    tensor: str,
    value: float,
    options: tuple[str, ...],
    expert_folder: Callable[..., Path],
    model_folder: ModelFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """Tensors that would make every answer infinite are refused, though each of their numbers may be finite."""
    folder = copied(expert_folder(kind), tmp_path / "expert")
    edit_tensors(
        folder / WEIGHTS,
        lambda tensors: [array.fill(value) for key, array in tensors.items() if tensor in key],
    )
    error, message = refused(model_folder("llama"), folder, options=options)
    assert "AdapterError" == error
    assert re.search("hold.? NaN or (infinity|numbers beyond)|NaNs detected", message), message
    assert len(message) < 1200
