"""Fields of adapter_config.json that are honoured give PEFT's logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from parity import assert_same_as_peft
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from support import tiny
from support.exporting import CONFIG, WEIGHTS, edit_json

from hivellm_ort.adapters.config import PeftConfig, read_peft_config
from hivellm_ort.contract import DecoderConfig

ModelFolder = Callable[[str], Path]

MODULES = [
    f"model.layers.{i}.{block}.{name}"
    for i in range(2)
    for block, names in (("self_attn", tiny.ATTENTION), ("mlp", tiny.MLP))
    for name in names
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lora", {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 8}}),
        ("lora", {"alpha_pattern": {"v_proj": 32, r"layers\.0\.self_attn\.o_proj": 1}}),
        ("lora", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.(q|k)_proj": 24}}),
        ("lora", {"rank_pattern": {r"^model\.layers\.1\.mlp\.up_proj": 7}, "alpha_pattern": {"^q_proj": 99}}),
        ("rslora", {"rank_pattern": {"q_proj": 9, "down_proj": 1}, "alpha_pattern": {"up_proj": 3}}),
        ("dora", {"rank_pattern": {"k_proj": 6}, "alpha_pattern": {"k_proj": 2}}),
        ("lora", {"layers_to_transform": 1}),
        ("lora", {"layers_to_transform": [0]}),
        ("lora", {"layers_to_transform": [0, 1], "layers_pattern": "layers"}),
        ("lora", {"layers_to_transform": [1], "layers_pattern": ["blocks", "layers"]}),
        ("lora", {"exclude_modules": ["q_proj", "model.layers.1.mlp.up_proj"]}),
        ("lora", {"exclude_modules": r".*\.layers\.0\..*"}),
        ("lora", {"target_modules": r".*\.layers\.(0|1)\.(self_attn\.(q|v)_proj|mlp\.down_proj)"}),
        ("lora", {"target_modules": "all-linear"}),
        ("lora", {"target_modules": ["model.layers.0.self_attn.q_proj", "up_proj"]}),
        ("dora", {"target_modules": ["k_proj"]}),
        ("dora", {"target_modules": ["up_proj", "o_proj"]}),
        ("dora", {"target_modules": ["q_proj", "v_proj", "gate_proj"], "use_rslora": True}),
        ("ia3", {"target_modules": ["q_proj", "up_proj", "down_proj"]}),
        ("lora", {"init_lora_weights": "gaussian"}),
        ("lora", {"init_lora_weights": "orthogonal"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match")
def test_swapped(kind: str, options: dict[str, Any], model_folder: ModelFolder, tmp_path: Path) -> None:
    """Which modules, which ranks, which scaling: all as PEFT reads them."""
    config = tiny.adapter_config(kind, **options)
    folder = tiny.save_adapter(tmp_path / "expert", model_folder("qwen3"), config)
    assert_same_as_peft(model_folder("qwen3"), tiny.with_manifest(folder), tmp_path)


def test_all_linear_as_it_is_written(model_folder: ModelFolder, tmp_path: Path) -> None:
    """PEFT expands "all-linear" when it saves; written by hand it means the same."""
    config = tiny.adapter_config("lora", target_modules="all-linear")
    folder = tiny.save_adapter(tmp_path / "expert", model_folder("llama"), config)
    edit_json(folder / CONFIG, target_modules="all-linear")
    assert_same_as_peft(model_folder("llama"), tiny.with_manifest(folder), tmp_path)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_file(
    dtype: torch.dtype, kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """An adapter stored in 16 bits is read exactly and computed in float32."""
    folder = tiny.save_adapter(tmp_path / "expert", model_folder("qwen3"), tiny.adapter_config(kind))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert_same_as_peft(model_folder("qwen3"), tiny.with_manifest(folder), tmp_path)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
def test_adalora_after_rank_allocation(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The ranks that AdaLoRA gave up are gone from the file; the scaling stays that of init_r."""
    folder = tiny.save_pruned_adalora(tmp_path / "expert", model_folder("llama"))
    pattern = json.loads((folder / CONFIG).read_text())["rank_pattern"]
    assert {0, 1, 2, 3} == {sum(kept) for kept in pattern.values()}
    assert_same_as_peft(model_folder("llama"), tiny.with_manifest(folder), tmp_path)


@pytest.mark.filterwarnings("ignore:Note that `r` is not used in AdaLora")
def test_adalora_scaling_is_that_of_the_initial_rank(model_folder: ModelFolder, tmp_path: Path) -> None:
    """AdaLoRA's `r`, which PEFT writes and never uses, has no effect."""
    folder = tiny.save_adapter(tmp_path / "expert", model_folder("llama"), tiny.adapter_config("adalora"))
    edit_json(folder / CONFIG, r=64)
    assert_same_as_peft(model_folder("llama"), tiny.with_manifest(folder), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("qwen2", {}), ("llama", {"attention_bias": True, "mlp_bias": True})],
    ids=["qwen2", "llama-with-every-bias"],
)
@pytest.mark.parametrize("kind", ["ia3", "dora", "lora"])
def test_base_with_biases(kind: str, architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    """IA3 scales the base's biases with the rest, DoRA and LoRA leave them alone."""
    base = tiny.save_model(tmp_path / "base", architecture, **options)
    config = tiny.adapter_config(kind)
    if kind == "ia3":
        config = peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        )
    folder = tiny.save_adapter(tmp_path / "expert", base, config)
    assert_same_as_peft(base, tiny.with_manifest(folder), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "kind", "options"),
    [
        ("qwen2", "lora", {"modules_to_save": ["lm_head"]}),
        ("llama", "lora", {"modules_to_save": ["lm_head"]}),
        ("qwen2", "lora", {"modules_to_save": ["embed_tokens", "input_layernorm"]}),
        ("qwen2", "lora", {"bias": "all"}),
        ("qwen2", "lora", {"bias": "lora_only"}),
        ("qwen2", "lora", {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj"]}),
        ("qwen2", "lora", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", "lora", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", "lora", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("llama", "lora", {"trainable_token_indices": [5, 17, 90]}),
        ("llama", "lora", {"init_lora_weights": "pissa"}),
        ("llama", "lora", {"init_lora_weights": "olora"}),
        ("llama", "dora", {"rank_pattern": {"q_proj": 2}}),
        ("llama", "adalora", {}),
        ("qwen2", "ia3", {}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_merged(
    architecture: str, kind: str, options: dict[str, Any], model_folder: ModelFolder, tmp_path: Path
) -> None:
    """What only --merge can take gives the logits of the adapter as PEFT runs it, not merged."""
    base = model_folder(architecture)
    folder = tiny.save_adapter(tmp_path / "expert", base, tiny.adapter_config(kind, **options))
    expert = assert_same_as_peft(base, tiny.with_manifest(folder), tmp_path, merged=True)
    assert expert.adapter is None


NAMES = st.sampled_from(
    [
        "q_proj",
        "v_proj",
        "down_proj",
        "proj",
        "self_attn",
        "model.layers.0.mlp.up_proj",
        "layers.1.mlp.up_proj",
    ]
)
PATTERNS = st.sampled_from(
    [r".*q_proj", r".*\.layers\.0\..*", "q_proj", r"model\.layers\.\d\.mlp\.(up|down)_proj"]
)


@given(
    target=st.lists(NAMES, min_size=1) | PATTERNS,
    exclude=st.none() | st.lists(NAMES) | PATTERNS,
    layers=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2)),
    layers_pattern=st.none() | st.sampled_from(["layers", ["layers"], ["h", "layers"], ["h"], []]),
    saved=st.none() | st.lists(st.sampled_from(["up_proj", "mlp", "lm_head"])),
)
@example(
    target=["model.layers.0.mlp.up_proj", "q_proj"], exclude=None, layers=[1], layers_pattern=None, saved=None
)
def test_targets_as_peft(
    target: Any,
    exclude: Any,
    layers: Any,
    layers_pattern: Any,
    saved: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever the fields say, the same modules are adapted as PEFT would adapt."""
    fields = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": target,
        "exclude_modules": exclude,
        "layers_to_transform": layers,
        "layers_pattern": layers_pattern,
        "modules_to_save": saved,
    }
    path = tmp_path_factory.getbasetemp() / CONFIG
    path.write_text(json.dumps(fields))
    theirs = peft.LoraConfig()
    for name, value in fields.items():
        setattr(theirs, name, value)
    ours: PeftConfig = read_peft_config(path)
    expected = [module for module in MODULES if bool(check_target_module_exists(theirs, module))]
    assert expected == [module for module in MODULES if ours.targets(module)]


KEYS = st.sampled_from(
    [
        "q_proj",
        "proj",
        "^q_proj",
        "mlp.up_proj",
        r"^model\.layers\.0\.mlp\.up_proj",
        r"layers\.1\..*",
        r"layers\.[01]\.self_attn\.(q|k)_proj",
        "model.layers.0.self_attn.v_proj",
        r"^.*\.o_proj",
        "q_proj|down_proj",
        r".*\.layers\.1\.mlp\.gate_proj",
    ]
)


@given(
    ranks=st.dictionaries(KEYS, st.integers(1, 16), max_size=4),
    alphas=st.dictionaries(KEYS, st.integers(1, 64), max_size=4),
    rslora=st.booleans(),
)
def test_patterns_as_peft(
    ranks: dict[str, int], alphas: dict[str, int], rslora: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every module has the rank and the scaling that PEFT finds for it, anchors and alternatives included."""
    fields = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "use_rslora": rslora,
    }
    path = tmp_path_factory.getbasetemp() / CONFIG
    path.write_text(json.dumps({**fields, "rank_pattern": ranks, "alpha_pattern": alphas}))
    ours = read_peft_config(path)
    for module in MODULES:
        rank = ranks.get(get_pattern_key(list(ranks), module), 4)
        alpha = alphas.get(get_pattern_key(list(alphas), module), 8)
        scaling = alpha / (math.sqrt(rank) if rslora else rank)
        assert (rank, pytest.approx(scaling)) == (ours.rank_of(module), ours.scaling_of(module, rank))


def test_modules_are_those_of_the_bundle(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The list of modules these tests use is the one an exported bundle offers."""
    from hivellm_export.pipeline import export

    export(model_folder("llama"), [], tmp_path / "bundle", precision="fp32")
    config = DecoderConfig.from_file(tmp_path / "bundle" / "decoder.json")
    assert sorted(MODULES) == sorted(part.module for site in config.sites for part in site.parts)
