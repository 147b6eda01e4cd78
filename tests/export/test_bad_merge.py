"""What --merge refuses beside wrong tensors: PEFT alone would pass some of it over in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from support import tiny
from support.exporting import CONFIG, WEIGHTS, Refusal, copied, edit_json, edit_tensors

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["prompt-tuning", "prefix-tuning"],
)
def test_kind_without_weights_to_merge(
    config: peft.PeftConfig, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An adapter that is a prompt cannot be folded into weights, and the message names its kind."""
    expert = tiny.save_adapter(tmp_path / "expert", model_folder("llama"), config)
    found, message = refused(model_folder("llama"), tiny.with_manifest(expert), options=("--merge",))
    assert "AdapterError" == found
    assert message.startswith(f"expert/{CONFIG}: ")
    assert "peft_type" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("a_field_of_the_future", {"x": 1}),
        ("peft_type", "NO_SUCH_KIND"),
        ("r", 5),
        ("target_modules", ["no_such_module"]),
        ("bias", "some"),
    ],
)
def test_config_field(
    field: str,
    value: Any,
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A field that PEFT does not know, or that does not fit the tensors, is refused here too."""
    expert = copied(expert_folder(), tmp_path / "expert")
    edit_json(expert / CONFIG, **{field: value})
    found, message = refused(model_folder("llama"), expert, options=("--merge",))
    assert found in ("AdapterError", "BaseMismatchError")
    assert message.startswith("expert/")
    assert CONFIG in message


@pytest.mark.parametrize("kind", ["adalora", "ia3", "lokr"])
def test_mis_shaped_tensor(
    kind: str, model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A tensor with a row too many is refused by name for every kind."""
    expert = copied(expert_folder(kind), tmp_path / "expert")
    names: list[str] = []

    def lengthen(tensors: dict[str, np.ndarray]) -> None:
        name = next(name for name in sorted(tensors) if "q_proj" in name or "k_proj" in name)
        names.append(name)
        tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])

    edit_tensors(expert / WEIGHTS, lengthen)
    found, message = refused(model_folder("llama"), expert, options=("--merge",))
    assert found in ("AdapterError", "BaseMismatchError")
    assert names[0] in message


@pytest.mark.parametrize("kind", ["adalora", "ia3", "lokr"])
def test_missing_tensor(
    kind: str, model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A tensor that is not there is refused by name for every kind."""
    expert = copied(expert_folder(kind), tmp_path / "expert")
    names: list[str] = []

    def drop(tensors: dict[str, np.ndarray]) -> None:
        names.append(min(tensors))
        del tensors[min(tensors)]

    edit_tensors(expert / WEIGHTS, drop)
    found, message = refused(model_folder("llama"), expert, options=("--merge",))
    assert "AdapterError" == found
    assert f"{WEIGHTS}: tensor {names[0]} is missing" in message


@pytest.mark.filterwarnings("ignore:.*merging LoRA weights won't be possible")
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
def test_lora_bias_on_a_base_without_biases(
    model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A bias that has no place in the base is refused with PEFT's reason."""
    config = tiny.adapter_config("lora", lora_bias=True)
    expert = tiny.save_adapter(tmp_path / "expert", model_folder("llama"), config)
    found, message = refused(model_folder("llama"), tiny.with_manifest(expert), options=("--merge",))
    assert "AdapterError" == found
    assert "lora_bias" in message
