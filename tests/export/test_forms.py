"""What `decoder.json` says about the graphs of each target, and exports that no target can make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny
from support.exporting import Refusal, copied, edit_json

from hivellm_export.graph.rules import check_bundle
from hivellm_export.pipeline import export
from hivellm_export.targets import TARGETS, choose_target
from hivellm_ort import ExportError
from hivellm_ort.adapters.base_weights import BaseWeights
from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON, WEIGHTS_FILE, DecoderConfig, GraphConfig

ModelFolder = Callable[[str], Path]
TargetBundle = Callable[[str, str, str], Path]

FREE_INPUTS = {
    "input_ids": ["batch_size", "sequence_length"],
    "seqlens_k": ["batch_size"],
    "total_sequence_length": [],
    "logits_rows": ["rows"],
}
FIXED = {"input_ids": [1, "sequence_length"], "position_ids": [1, "sequence_length"]}


def types(dtype: str) -> dict[str, str]:
    """The three float types of a form."""
    return dict.fromkeys(("cache_dtype", "activation_dtype", "adapter_dtype"), dtype)


FORMS = {
    ("cpu", "int8"): {
        **types("float32"),
        "opsets": {"": 18, "com.microsoft": 1},
        "inputs": FREE_INPUTS,
        "shapes": {},
        "multi_token_append": True,
        "cache_update": "in_place",
        "greedy_output": False,
    },
    ("cuda", "bf16"): {
        **types("bfloat16"),
        "opsets": {"": 18, "com.microsoft": 1},
        "inputs": FREE_INPUTS,
        "shapes": {},
        "multi_token_append": True,
        "cache_update": "in_place",
        "greedy_output": True,
    },
    ("dml", "fp16"): {
        **types("float16"),
        "opsets": {"": 18, "com.microsoft": 1},
        "inputs": {**FIXED, "seqlens_k": [1], "total_sequence_length": [1], "logits_rows": [1]},
        "shapes": {"batch_size": [1], "max_length": [128], "sequence_length": [1, 64, 128], "rows": [1]},
        "multi_token_append": False,
        "cache_update": "in_place",
        "greedy_output": False,
    },
    ("portable", "fp32"): {
        **types("float32"),
        "opsets": {"": 18},
        "inputs": {**FIXED, "logits_rows": ["rows"]},
        "shapes": {"batch_size": [1], "max_length": [128], "sequence_length": [1, 16, 64, 128]},
        "multi_token_append": True,
        "cache_update": "new_tokens",
        "greedy_output": False,
    },
}


@pytest.mark.parametrize(("target", "precision"), FORMS)
def test_form(target: str, precision: str, target_bundle: TargetBundle) -> None:
    """Types, opsets, inputs, shapes and what may be done, as data."""
    document = json.loads((target_bundle("qwen3", target, precision) / DECODER_JSON).read_text())
    assert FORMS[target, precision] == document["graph"]
    assert ("1.7", target, precision) == tuple(
        document[key] for key in ("contract_version", "target", "precision")
    )


def test_older_bundle_has_the_form_of_cpu(target_bundle: TargetBundle, tmp_path: Path) -> None:
    """Before contract 1.3 nothing was said, and there was only one form."""
    place = copied(target_bundle("qwen3", "cpu", "int8"), tmp_path / "bundle") / DECODER_JSON
    document = json.loads(place.read_text())
    del document["graph"], document["half_weights"]
    place.write_text(json.dumps({**document, "contract_version": "1.2"}))
    config = DecoderConfig.from_file(place)
    assert (GraphConfig(), {}) == (config.graph, config.half_weights)


def test_later_fields_are_passed_over(target_bundle: TargetBundle, tmp_path: Path) -> None:
    """A form with fields of a later minor version is read as far as it is known."""
    place = copied(target_bundle("qwen3", "dml", "fp16"), tmp_path / "bundle") / DECODER_JSON
    edit_json(place, graph={**json.loads(place.read_text())["graph"], "speculation": 4})
    assert not DecoderConfig.from_file(place).graph.multi_token_append


def test_context_fixes_the_cache(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The cache has the length asked for, and no bucket is longer."""
    for target, buckets in (("dml", (1, 40)), ("portable", (1, 16, 40))):
        export(model_folder("llama"), [], tmp_path / target, target=target, context=40)
        shapes = check_bundle(tmp_path / target).graph.shapes
        assert ((40,), buckets) == (shapes["max_length"], shapes["sequence_length"])


def test_context_within_the_window(model_folder: ModelFolder, tmp_path: Path) -> None:
    """DirectML's attention has no window; a cache that is not longer needs none."""
    with pytest.raises(ExportError, match=r"attends to the last 8 tokens.*--context 8"):
        export(model_folder("mistral"), [], tmp_path / "out", target="dml")
    export(model_folder("mistral"), [], tmp_path / "out", target="dml", context=8)


def test_prepared_adapter_is_the_same_for_every_target(target_bundle: TargetBundle) -> None:
    """Joined or apart, in whatever float type: a thin package fits the bundles of all targets."""
    forms = {"cpu": "int4", "cuda": "fp16", "dml": "fp16", "portable": "fp32"}
    folders = [target_bundle("llama", target, precision) for target, precision in forms.items()]
    first, *others = (load_file(folder / ADAPTER_FILE) for folder in folders)
    for other in others:
        assert set(first) == set(other)
        assert all(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("target", TARGETS)
def test_default_precision(target: str) -> None:
    """Each target has its own."""
    expected = {"cpu": "int8", "cuda": "fp16", "dml": "fp16", "portable": "fp32"}
    assert expected[target] == choose_target(target)[1].name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target dml --precision bf16", "--target dml has no --precision bf16: use fp16, or --target cuda"),
        ("--target cuda --precision fp32", "use fp16 or bf16 or int4, or --target cpu or portable"),
        ("--target portable --precision int4", "use fp32 or fp16, or --target cpu or cuda"),
        (
            "--target cpu --precision fp16",
            "use int8 or w8a8 or int4 or fp32, or --target cuda or dml or portable",
        ),
        ("--context 64", "--context 64 is for targets with fixed shapes; cpu takes any length: leave it out"),
        ("--target portable --context 129", "--context 129: the model has 128 positions; use 2 to 128"),
    ],
)
def test_combinations_that_are_refused(
    options: str, message: str, refused: Refusal, model_folder: ModelFolder
) -> None:
    """The error says what goes instead."""
    error = refused(model_folder("llama"), options=tuple(options.split()))
    assert "ExportError" == error[0]
    assert message in error[1]


def test_unknown_target(model_folder: ModelFolder, tmp_path: Path) -> None:
    """From Python, too, the error lists the targets."""
    with pytest.raises(ExportError, match="choose one of cpu, cuda, dml, portable"):
        export(model_folder("llama"), [], tmp_path / "out", target="npu")


def test_weight_beyond_float16(tmp_path: Path) -> None:
    """A tensor that would become infinite is named, with the precision that can hold it."""
    base = tiny.save_model(tmp_path / "model", "llama")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight .*float16.*bf16"):
        export(base, [], tmp_path / "out", target="cuda")
    export(base, [], tmp_path / "out", target="cuda", precision="bf16")


@pytest.mark.parametrize(
    ("target", "precision", "dtype"),
    [("cuda", "fp16", np.float16), ("cuda", "bf16", ml_dtypes.bfloat16), ("dml", "fp16", np.float16)],
)
def test_half_weights(
    target: str,
    precision: str,
    dtype: type[np.generic],
    model_folder: ModelFolder,
    target_bundle: TargetBundle,
) -> None:
    """Half floats are where `half_weights` says; a runtime of contract 1.2 finds no weights to misread."""
    folder = target_bundle("qwen2", target, precision)
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    tensors = load_file(model_folder("qwen2") / "model.safetensors")
    data = (folder / WEIGHTS_FILE).read_bytes()
    assert {} == config.weights
    assert {site.name for site in config.sites} == set(config.half_weights)
    for site in config.sites:
        place, shape = config.half_weights[site.name], (site.in_features, site.out_features)
        expected = np.concatenate([tensors[f"{part.module}.weight"] for part in site.parts]).T.astype(dtype)
        found = np.frombuffer(data, dtype, expected.size, place.weight).reshape(shape)
        assert np.array_equal(expected, found)
        assert (0, site.bias) == (place.bits, place.bias is not None)


def test_weights_of_portable_are_read(model_folder: ModelFolder, target_bundle: TargetBundle) -> None:
    """Where floats are float32, adapters are prepared from the bundle as for cpu, q, k and v being sites."""
    folder = target_bundle("qwen2", "portable", "fp32")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    weights = BaseWeights(folder, config)
    tensors = load_file(model_folder("qwen2") / "model.safetensors")
    for name in ("k_proj.weight", "v_proj.bias"):
        full = f"model.layers.1.self_attn.{name}"
        assert np.array_equal(tensors[full], weights.tensor(full))
    assert {} == config.half_weights
