"""Faults planted in the exporter, one at a time, are found by verification, by the name of what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.exporting import Refusal
from tokenizers import pre_tokenizers

from hivellm_export import pipeline
from hivellm_export.base_model import BaseModel
from hivellm_export.graph.lowering import Lowering
from hivellm_export.graph.placeholders import text_of
from hivellm_export.packaging import bundle
from hivellm_export.weights.writer import WeightWriter
from hivellm_ort.adapters.config import PeftConfig
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]

BOTH = ("--verify", "--precision", "int8")


def found(refused: Refusal, base: Path, *experts: Path, options: tuple[str, ...] = BOTH) -> str:
    """The message of an export that fails; `Refusal` checks status 2 and that nothing is left behind."""
    kind, message = refused(base, *experts, options=options)
    assert "ExportError" == kind
    return message


def plant_in_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[BaseModel], Any]) -> None:
    """Have the base read wrong."""
    read = pipeline.load_base

    def wrong(*arguments: Any, **options: Any) -> BaseModel:
        model = read(*arguments, **options)
        change(model)
        return model

    monkeypatch.setattr(pipeline, "load_base", wrong)


def set_theta(model: BaseModel, theta: float) -> None:
    """Give the model in memory other frequencies."""
    embedding = model.model.model.rotary_emb
    width = 2 * len(embedding.inv_freq)
    embedding.inv_freq.copy_(theta ** -(torch.arange(0, width, 2) / width))


@pytest.mark.parametrize("stage", ["reading", "writing"])
def test_wrong_theta(
    stage: str, model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another base of the frequencies, in the model in memory or in the tables of the bundle alone."""
    if stage == "reading":
        plant_in_reading(monkeypatch, lambda model: set_theta(model, 500_000.0))
    else:
        tables = BaseModel.rotary
        monkeypatch.setattr(BaseModel, "rotary", lambda self: tuple(table**2 for table in tables(self)))
    message = found(refused, model_folder("qwen3"))
    assert message.startswith(
        "base bundle qwen3 int8 for cpu: the rotary embedding differs from the source at "
    )
    assert "config.json: rope_theta and rope_scaling says theta 10000" in message


def test_dropped_rope_factors(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 3's scaling is in config.json, and the reading passes over it: the model in memory has it neither."""
    plant_in_reading(monkeypatch, lambda model: set_theta(model, 10_000.0))
    message = found(refused, model_folder("llama"))
    assert "the rotary embedding differs from the source at position 1, frequency " in message
    assert message.endswith("says theta 10000, llama3 scaling by 4.0")


def test_wrong_pre_tokenizer(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are cut otherwise than the source's tokenizer cuts them."""

    def change(model: BaseModel) -> None:
        parts = [
            pre_tokenizers.Digits(True),
            pre_tokenizers.Split("s", "isolated"),
            pre_tokenizers.ByteLevel(False),
        ]
        model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)

    plant_in_reading(monkeypatch, change)
    message = found(refused, model_folder("llama"))
    assert "int8 for cpu: the tokenizer differs from transformers' reading of llama: " in message
    assert "look at its pre-tokenizer (Digits+Split+ByteLevel), merges and added tokens" in message


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8a8", "int4"])
def test_scaled_layer(
    precision: str, model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's weights are 1.05 times as large, where they are read or where they are written."""
    name = "model.layers.1.mlp.down_proj.weight"
    message = f"for cpu: tensor {name} differs from llama: it is 1.0"
    with monkeypatch.context() as patch:

        def writer(folder: Path, tensor: Callable[[str], Any], **options: Any) -> WeightWriter:
            return WeightWriter(
                folder, lambda key: tensor(key) * np.float32(1.05 if key == name else 1), **options
            )

        patch.setattr(bundle, "WeightWriter", writer)
        options = ("--verify", "--precision", precision)
        assert message in found(refused, model_folder("llama"), options=options)
    with torch.no_grad(), monkeypatch.context() as patch:
        plant_in_reading(patch, lambda model: model.model.get_parameter(name).mul_(1.05))
        assert message in found(refused, model_folder("llama"), options=options)


def test_scaled_before_a_merge(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base that an adapter is merged into is compared with its file too."""
    name = "model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        plant_in_reading(monkeypatch, lambda model: model.model.get_parameter(name).mul_(1.05))
        message = found(
            refused, model_folder("llama"), expert_folder("lora", "llama"), options=(*BOTH, "--merge")
        )
    assert f"the base in memory: tensor {name} differs from llama: it is 1.0500 times as large" in message


def test_scaled_by_the_graph(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are right, and the graph multiplies what a projection gives: the first layer that differs is named."""
    linear = Lowering.linear

    def scaled(self: Lowering, node: ir.Node) -> Any:
        outputs = linear(self, node)
        if text_of(node, "site") != "model.layers.0.self_attn.o_proj":
            return outputs
        factor = self.initializer(ir.tensor(np.array(1.05, np.float32), name="planted"))
        return (self.op("Mul", outputs[0], factor, width=64),)

    monkeypatch.setattr(Lowering, "linear", scaled)
    message = found(refused, model_folder("llama"), options=("--verify", "--precision", "fp32"))
    assert "answers differ from transformers': model.layers.1 (keys by " in message


def test_keys_that_are_not_turned(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are right, and the graph pairs dimensions otherwise: keys alone differ in the first layer."""
    op = Lowering.op

    def interleaved(self: Lowering, op_type: str, *inputs: Any, **options: Any) -> Any:
        if "rotary_interleaved" in options:
            options["rotary_interleaved"] = 1
        return op(self, op_type, *inputs, **options)

    monkeypatch.setattr(Lowering, "op", interleaved)
    message = found(refused, model_folder("qwen3"))
    assert "answers differ from transformers': model.layers.0 (keys by " in message
    assert message.endswith("so look at the rotary embedding and the norm of keys")


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_doubled_alpha(
    kind: str,
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapter's scaling is twice what PEFT makes of its configuration; for DoRA that is not twice the effect."""
    scaling = PeftConfig.scaling_of
    monkeypatch.setattr(PeftConfig, "scaling_of", lambda self, *rest: 2 * scaling(self, *rest))
    message = found(refused, model_folder("llama"), expert_folder(kind, "llama"))
    start = f"{kind}-llama on base bundle llama int8 for cpu: the adapter of module "
    assert message.startswith(f"{start}model.layers.0.self_attn.q_proj differs from PEFT's by ")
    if kind != "dora":
        assert message.endswith("by 100.00% of its effect, which is 2.000 times as large as PEFT's")


def test_doubled_alpha_of_a_merge(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was merged into a module is twice what PEFT merges."""
    merge = pipeline.merge

    def doubled(model: BaseModel, folder: Path) -> Any:
        name = "model.layers.1.mlp.up_proj.weight"
        before = model.model.get_parameter(name).detach().clone()
        merged, digest = merge(model, folder)
        with torch.no_grad():
            merged.model.get_parameter(name).mul_(2).sub_(before)
        return merged, digest

    monkeypatch.setattr(pipeline, "merge", doubled)
    options = ("--verify", "--precision", "fp32", "--merge")
    message = found(refused, model_folder("llama"), expert_folder("lora", "llama"), options=options)
    assert "tensor model.layers.1.mlp.up_proj.weight differs from PEFT's merge of lora-llama" in message


def test_module_that_is_left_out(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that PEFT adapts is missing in the prepared adapter."""
    prepare = pipeline.prepare

    def without(*arguments: Any, **options: Any) -> PreparedAdapter:
        adapter = prepare(*arguments, **options)
        modules = {name: part for name, part in adapter.modules.items() if "layers.1.mlp.gate" not in name}
        return dataclasses.replace(adapter, modules=modules)

    monkeypatch.setattr(pipeline, "prepare", without)
    message = found(refused, model_folder("llama"), expert_folder("lora", "llama"))
    assert "the adapter of module model.layers.1.mlp.gate_proj differs from PEFT's by 100.00%" in message


def test_final_norm_of_the_graph(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is behind the last layer changes no keys and values: the message says so."""
    linear = Lowering.linear

    def scaled(self: Lowering, node: ir.Node) -> Any:
        outputs = linear(self, node)
        if text_of(node, "site") != "lm_head":
            return outputs
        factor = self.initializer(ir.tensor(np.array(1.05, np.float32), name="planted"))
        return (self.op("Mul", outputs[0], factor),)

    monkeypatch.setattr(Lowering, "linear", scaled)
    message = found(refused, model_folder("llama"), options=("--verify", "--precision", "fp32"))
    assert message.endswith(
        "keys and values of all layers agree, so look at what follows them, up to lm_head"
    )


def test_norm_that_is_dropped(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector is compared as matrices are."""

    def change(model: BaseModel) -> None:
        with torch.no_grad():
            model.model.model.norm.weight.fill_(1.0)

    plant_in_reading(monkeypatch, change)
    assert "tensor model.norm.weight differs from qwen2" in found(refused, model_folder("qwen2"))


def test_message_is_one_line(
    model_folder: ModelFolder, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text with line ends may be what differs."""
    plant_in_reading(
        monkeypatch,
        lambda model: model.tokenizer.backend_tokenizer.add_tokens(["\n"]),
    )
    message = found(refused, model_folder("llama"))
    assert 1 == len(message.splitlines())
