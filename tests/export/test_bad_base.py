"""A wrong base model is refused by name, and the export leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import tiny
from support.exporting import Refusal, Tensors, copied, edit_json, edit_tensors, truncate

from hivellm_export.huggingface.config import ARCHITECTURES
from hivellm_ort.cli.main import main

ModelFolder = Callable[[str], Path]

WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"


def poison(tensors: Tensors) -> None:
    """One value of a tensor is no number."""
    tensors[Q][0, 0] = np.nan


def resize(tensors: Tensors) -> None:
    """A tensor of another model."""
    tensors[Q] = tensors[Q][:32]


def add_bias(tensors: Tensors) -> None:
    """A bias that the architecture of the configuration does not have."""
    tensors[Q.replace("weight", "bias")] = np.ones(64, np.float32)


@pytest.mark.parametrize(
    "change",
    [lambda tensors: tensors.pop(Q), resize, poison, add_bias],
    ids=["missing", "mis-shaped", "nan", "unexpected"],
)
def test_wrong_tensor(
    change: Callable[[Tensors], object], model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A base whose weights are not those of its configuration is refused, and the tensor is named."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit_tensors(base / WEIGHTS, change)
    found, message = refused(base)
    assert "ExportError" == found
    assert Q.removesuffix(".weight") in message


def test_integer_weights(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A base that someone quantised to integers is refused."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit_tensors(base / WEIGHTS, lambda tensors: tensors.update({Q: tensors[Q].astype(np.int32)}))
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("base: cannot be read as a base model: ")


@pytest.mark.parametrize("kept", [-1, 1000, 4, 0], ids=["one-byte", "in-header", "in-length", "empty"])
def test_truncated_weights(kept: int, model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """Base weights that were cut off anywhere are refused."""
    base = copied(model_folder("llama"), tmp_path / "base")
    truncate(base / WEIGHTS, to=kept)
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("base: cannot be read as a base model: ")


def test_garbage_weights(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """Base weights that are no safetensors are refused."""
    base = copied(model_folder("llama"), tmp_path / "base")
    (base / WEIGHTS).write_bytes(b"\x80\x04\x95" * 500)
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("base: cannot be read as a base model: ")


def test_truncated_gguf(refused: Refusal, tmp_path: Path) -> None:
    """A .gguf file with nothing after its magic number is refused."""
    base = tmp_path / "base.Q4_1.gguf"
    base.write_bytes(b"GGUF\x03\x00\x00\x00")
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("base.Q4_1.gguf: cannot be read as a base model: ")


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text", "phi3", "a_model_of_the_future"])
def test_unsupported_architecture(
    model_type: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An architecture that is not supported is named together with those that are."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit_json(base / "config.json", model_type=model_type)
    found, message = refused(base)
    assert "UnsupportedArchitectureError" == found
    assert f"config.json: model_type {model_type!r}" in message
    assert ", ".join(ARCHITECTURES) in message


@pytest.mark.parametrize("field", ["rope_type", "type"])
def test_unknown_rope(field: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A rotary embedding that the graph cannot express is refused, in both spellings of the field."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    edit_json(base / "config.json", rope_scaling={field: "mrope", "mrope_section": [2, 3, 3]})
    found, message = refused(base)
    assert "UnsupportedArchitectureError" == found
    assert message.startswith(
        "config.json: rope_scaling type 'mrope' is not supported; supported are default, "
    )


@pytest.mark.parametrize("content", ["{", "[1]", "", "{}", '{"model_type": 1}'])
def test_malformed_config(content: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A config.json that is not an object with a model_type is an error of that file."""
    base = copied(model_folder("llama"), tmp_path / "base")
    (base / "config.json").write_text(content)
    found, message = refused(base)
    assert found in ("ExportError", "UnsupportedArchitectureError")
    assert "config.json" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", "wide"), ("num_hidden_layers", -1), ("num_attention_heads", 0), ("vocab_size", None)],
)
def test_malformed_config_field(
    field: str, value: Any, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A number that is none ends in an error, not in a traceback."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit_json(base / "config.json", **{field: value})
    assert "ExportError" == refused(base)[0]


def test_code_in_the_folder_is_not_run(
    model_folder: ModelFolder, refused: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that brings its own model code is refused without a question that could let it run."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit_json(base / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    (base / "own.py").write_text("raise SystemExit('the code ran')")
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "n")
    refused(base)
    assert [] == questions


def test_pickled_weights(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone is refused: pickles are not read."""
    base = copied(model_folder("llama"), tmp_path / "base")
    (base / WEIGHTS).rename(base / "pytorch_model.bin")
    found, message = refused(base)
    assert "ExportError" == found
    assert "safetensors" in message


@pytest.mark.parametrize("is_file", [False, True])
def test_neither_folder_nor_gguf(is_file: bool, refused: Refusal, tmp_path: Path) -> None:
    """A path that is neither a model's folder nor a .gguf file is refused."""
    base = tmp_path / "base.txt"
    base.write_text("text") if is_file else base.mkdir()
    found, message = refused(base)
    assert "ExportError" == found
    assert "neither a .gguf file nor a Hugging Face folder" in message


def test_no_tokenizer(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A folder without a tokenizer is refused, and the message asks for it."""
    base = copied(model_folder("llama"), tmp_path / "base")
    for path in [*base.glob("token*"), *base.glob("special*")]:
        path.unlink()
    found, message = refused(base)
    assert "ExportError" == found
    assert "tokenizer" in message


def test_malformed_tokenizer(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A tokenizer.json that is none is refused, and the message names it."""
    base = copied(model_folder("llama"), tmp_path / "base")
    (base / "tokenizer.json").write_text(json.dumps({"model": {"type": "unheard of"}}))
    found, message = refused(base)
    assert found in ("ExportError", "LoadError")
    assert "tokenizer" in message


def test_hidden_size_that_does_not_fit_the_blocks(refused: Refusal, tmp_path: Path) -> None:
    """A hidden size that is no multiple of the block size cannot be quantised, and the message says what can."""
    base = tiny.save_model(tmp_path / "base", "llama", hidden_size=72, num_attention_heads=4, head_dim=18)
    found, message = refused(base, options=("--precision", "int8"))
    assert "ExportError" == found
    assert "hidden_size 72" in message
    assert "fp32" in message


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    """A base that does not exist never starts an export."""
    missing = tmp_path / "missing"
    result = CliRunner().invoke(main, ["export", "--base", str(missing), "--output", str(tmp_path / "out")])
    assert 2 == result.exit_code
    assert str(missing) in result.stderr
    assert [] == list(tmp_path.iterdir())
