"""Every field of a base's `config.json` reaches the graph, changes nothing, or is refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import as_five_writes, assert_same_answers, edit
from support import tiny
from support.exporting import Refusal, copied, edit_tensors
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hivellm_export.base_model import load_base
from hivellm_export.huggingface.config import ACTIVATIONS, ARCHITECTURES, check_config
from hivellm_export.huggingface.rope import ROPE_TYPES
from hivellm_export.pipeline import export
from hivellm_ort.errors import ExportError, UnsupportedArchitectureError

ModelFolder = Callable[[str], Path]

SMALL = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Beside the fields of its class, what transformers 5.24 writes for every family.
OF_FIVE = {
    "architectures": None,
    "dtype": "bfloat16",
    "transformers_version": "5.24.0",
    "pad_token_id": None,
    "use_cache": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def small(family: str, **fields: Any) -> dict[str, Any]:
    """A configuration of the least that a family needs."""
    return {"model_type": family, **SMALL, **fields}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_field_of_the_class_is_known(family: str) -> None:
    """Whatever the family's class has of fields, with its defaults, is taken and keeps its value."""
    signature = inspect.signature(CONFIG_MAPPING[family].__init__).parameters
    defaults = {
        name: parameter.default
        for name, parameter in signature.items()
        if parameter.default is not inspect.Parameter.empty
    }
    document = {**defaults, **small(family)}
    for extra in ({}, OF_FIVE):
        found = check_config({**document, **extra, "rope_theta": 1e6})
        config = AutoConfig.for_model(**found)
        for name in SMALL:
            assert SMALL[name] == getattr(config, name)
        assert 1e6 == config.rope_theta


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_files_that_transformers_writes(family: str, model_folder: ModelFolder) -> None:
    """A saved configuration is taken, and the class built from what is kept of it computes the same."""
    document = json.loads((model_folder(family) / "config.json").read_text())
    kept = AutoConfig.for_model(**check_config(document))
    saved = AutoConfig.from_pretrained(model_folder(family))
    for name in (
        "head_dim",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "hidden_act",
        "tie_word_embeddings",
    ):
        assert getattr(saved, name, None) == getattr(kept, name, None) or name == "head_dim"
    assert getattr(saved, "sliding_window", None) == getattr(kept, "sliding_window", None)
    assert getattr(saved, "layer_types", None) == getattr(kept, "layer_types", None)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": False}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        ("mistral", {"sliding_window": None, "head_dim": 32, "rms_norm_eps": 1e-3}),
        (
            "mistral",
            {"sliding_window": 6, "head_dim": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ),
    ],
    ids=["llama-biases", "qwen3-bias", "qwen2-window", "qwen3-layers", "mistral-head", "mistral-yarn"],
)
def test_honoured(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Fields that change the computation change it as in transformers, from transformers 5's file too."""
    folder = tiny.save_model(tmp_path / "base", family, **fields)
    reference = tiny.load_model(folder)
    assert_same_answers(as_five_writes(folder), reference, tmp_path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, tmp_path: Path) -> None:
    """Every activation that is taken is the one of transformers."""
    folder = tiny.save_model(tmp_path / "base", "llama", hidden_act=activation, num_hidden_layers=1)
    assert_same_answers(folder, tiny.load_model(folder), tmp_path, tokens=16)


def test_head_dim_of_a_silent_mistral(tmp_path: Path) -> None:
    """`head_dim` null is derived, where transformers 4 itself fails on a scaled rotary embedding."""
    found = check_config(small("mistral", head_dim=None, rope_scaling={"type": "linear", "factor": 2.0}))
    assert 16 == found["head_dim"]


# Of families that share much with ours, and of their own kind: each changes the computation.
RELATIVES: dict[str, Any] = {
    "attention_chunk_size": 8192,
    "attention_multiplier": 0.0078125,
    "attn_logit_softcapping": 50.0,
    "attn_temperature_tuning": True,
    "cross_attention_layers": [1],
    "embedding_multiplier": 12.0,
    "final_logit_softcapping": 30.0,
    "logit_scale": 0.0625,
    "logits_scaling": 8.0,
    "moe_intermediate_size": 64,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 0],
    "num_experts": 8,
    "num_kv_shared_layers": 2,
    "per_layer_config": {"1": {"sliding_window": 8}},
    "qk_layernorm": True,
    "quantization": {"bits": 4},
    "query_pre_attn_scalar": 256,
    "residual_multiplier": 0.22,
    "rope_local_base_freq": 10000.0,
    "use_qk_norm": True,
    "a_field_of_the_future": 1,
}


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("name", RELATIVES)
def test_unknown_field(family: str, name: str) -> None:
    """A field that nobody here knows is refused with its value; null says that it is unused."""
    with pytest.raises(UnsupportedArchitectureError) as error:
        check_config(small(family, **{name: RELATIVES[name]}))
    assert f"config.json: {name} = {RELATIVES[name]!r}" in str(error.value)
    check_config(small(family, **{name: None}))


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("llama", {"sliding_window": 4096}, "sliding_window = 4096"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("llama", {"is_causal": False}, "is_causal = False"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("llama", {"hidden_act": "xielu"}, "hidden_act 'xielu'"),
        ("llama", {"hidden_act": None}, "hidden_act None"),
        ("mistral", {"attention_bias": True}, "attention_bias = True"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("mistral", {"mlp_bias": True}, "mlp_bias = True"),
        ("mistral", {"use_sliding_window": False}, "use_sliding_window is false"),
        ("qwen2", {"attention_bias": False}, "attention_bias = False"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types has 'linear_attention'"),
        ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification"),
        ("qwen3", {"architectures": ["DFlashDraftModel"]}, "DFlashDraftModel"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures 'LlamaForCausalLM'"),
        ("qwen2", {"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map"),
        ("llama", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantised with awq"),
        ("llama", {"quantization_config": "gptq"}, "quantization_config"),
    ],
)  # fmt: skip
def test_unsupported_value(family: str, fields: dict[str, Any], named: str) -> None:
    """A value that would be another computation than the family's is refused by name."""
    with pytest.raises(UnsupportedArchitectureError) as error:
        check_config(small(family, **fields))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 64.0}, "hidden_size must be a whole number above 0 and below"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be a whole number above 0 and below 10000"),
        ({"head_dim": 15}, "head_dim 15 "),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"eos_token_id": 288}, "eos_token_id must be a token id from 0 to 287"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id"),
        ({"layer_types": ["full_attention"]}, "layer_types must be a list of num_hidden_layers 2"),
    ],
)
def test_malformed_value(fields: dict[str, Any], named: str) -> None:
    """A value that is none of the field's kind is an error of that field."""
    with pytest.raises(ExportError) as error:
        check_config(small("qwen2", **fields))
    assert named in str(error.value)


def test_missing_field() -> None:
    """The shape is not guessed: a field that gives it must be there."""
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ):
        document = small("llama")
        del document[name]
        with pytest.raises(ExportError, match=f"config.json: {name} is missing"):
            check_config(document)


def test_long_value() -> None:
    """A value of any size is shown on one line that can be read."""
    with pytest.raises(UnsupportedArchitectureError) as error:
        check_config(small("llama", new_factors=list(range(10_000))))
    assert str(error.value).startswith("config.json: new_factors = [0, 1, 2, ")
    assert len(str(error.value)) < 400
    with pytest.raises(UnsupportedArchitectureError) as error:
        check_config(small("llama", **{"a\nname": "a\nvalue"}))
    assert "\n" not in str(error.value)


def test_where_is_said() -> None:
    """Whoever makes a configuration of something else says what it is made of."""
    with pytest.raises(UnsupportedArchitectureError, match=r"^model\.gguf: num_experts = 8"):
        check_config(small("llama", num_experts=8), "model.gguf")


def test_head_beside_tied_embeddings(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """A head of its own beside `tie_word_embeddings` is not thrown away; a copy of the embedding is none."""
    base = copied(model_folder("llama"), tmp_path / "base")
    table = "model.embed_tokens.weight"
    edit_tensors(base / "model.safetensors", lambda t: t.update({"lm_head.weight": t[table].copy()}))
    assert load_base(base).tied
    edit_tensors(base / "model.safetensors", lambda t: t.update({"lm_head.weight": t[table] + np.float32(1)}))
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("config.json: tie_word_embeddings is true, but lm_head.weight")


def test_head_that_the_operator_cannot_rotate(refused: Refusal, tmp_path: Path) -> None:
    """A head size that ONNX Runtime would refuse in the first run is refused in the export."""
    base = tiny.save_model(tmp_path / "base", "mistral", head_dim=24)
    found, message = refused(base)
    assert "ExportError" == found
    assert "head_dim of this model is 24: use --target portable" in message
    export(base, [], tmp_path / "portable", target="portable", precision="fp32")


def test_documented() -> None:
    """Every field of the families' classes, and every kind of rotary embedding, is in the document's table."""
    text = (Path(__file__).parents[2] / "docs" / "ci-export.md").read_text(encoding="utf-8")
    names = {
        name for family in ARCHITECTURES for name in inspect.signature(CONFIG_MAPPING[family]).parameters
    }
    assert [] == sorted(
        name for name in (names | {*ROPE_TYPES, *ACTIVATIONS}) - {"kwargs"} if f"`{name}`" not in text
    )


def test_unknown_field_by_the_command(model_folder: ModelFolder, refused: Refusal, tmp_path: Path) -> None:
    """An unknown field ends the export on one line that names file, field and value."""
    base = copied(model_folder("llama"), tmp_path / "base")
    edit(base / "config.json", logits_scaling=8.0)
    found, message = refused(base)
    assert "UnsupportedArchitectureError" == found
    assert message.startswith("config.json: logits_scaling = 8.0 ")
