"""Adapter folders as PEFT 0.10 to 0.21, Unsloth, Axolotl and trl leave them: swapped and merged accept the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from parity import TOLERANCE, expert_logits, peft_logits
from safetensors.torch import load_file, save_file
from support import tiny
from support.exporting import CONFIG, WEIGHTS, Refusal, copied, edit_json, edit_tensors

from hivellm_export.base_model import load_base
from hivellm_export.merge import merge
from hivellm_export.pipeline import export
from hivellm_ort import Expert

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]
Edit = Callable[[Path], object]

BOTH = pytest.mark.parametrize("merged", [False, True], ids=["swapped", "merged"])

# What a plain LoRA adapter has in adapter_config.json, by the version of PEFT that first wrote it.
WRITTEN: dict[str, dict[str, Any]] = {
    "0.10": {
        "auto_mapping": None, "base_model_name_or_path": "unsloth/tiny-bnb-4bit", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8,
        "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "peft_type": "LORA", "r": 4, "rank_pattern": {}, "alpha_pattern": {}, "revision": None,
        "target_modules": [*tiny.ATTENTION, *tiny.MLP],
        "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
    },
    "0.12": {"runtime_config": {"ephemeral_gpu_offload": False}},
    "0.14": {"eva_config": None, "exclude_modules": None, "lora_bias": False},
    "0.16": {
        "corda_config": None, "qalora_group_size": 16, "trainable_token_indices": None, "use_qalora": False,
    },
    "0.18": {
        "alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False, "peft_version": "0.18.0",
        "target_parameters": None,
    },
    "0.19": {"lora_ga_config": None, "use_bdlora": None},
    "0.20": {"monteclora_config": None, "velora_config": None},
    "0.21": {"kasa_config": None},
}  # fmt: skip
# As Unsloth writes it where a model may have a tower for images too.
REGEX = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mixer|mlp|feed_forward|ffn|dense|mixer).*?"
    r"\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj))|(?:\bmodel\.layers\.[\d]{1,}"
    r"(?!.*\.experts\.\d)\..*?(?:self_attn|attention|attn|mixer|mlp|feed_forward|ffn|dense|mixer).*?"
    r"\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)


def written_by(version: str) -> dict[str, Any]:
    """All fields of adapter_config.json as that version of PEFT writes them."""
    versions = list(WRITTEN)
    return {
        name: value
        for each in versions[: versions.index(version) + 1]
        for name, value in WRITTEN[each].items()
    }


def encoded(encoding: str) -> Edit:
    """Write the configuration as an editor of Windows does."""

    def edit(folder: Path) -> None:
        text = (folder / CONFIG).read_text(encoding="utf-8").replace("\n", "\r\n")
        (folder / CONFIG).write_bytes(text.encode(encoding))

    return edit


def renamed(change: Callable[[str], str]) -> Edit:
    """Give the tensors other names."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)

    return edit


def fields(**values: Any) -> Edit:
    """Set fields of the configuration."""
    return lambda folder: edit_json(folder / CONFIG, **values)


def whole_config(values: dict[str, Any]) -> Edit:
    """Write another configuration."""
    return lambda folder: (folder / CONFIG).write_text(json.dumps(values))


def training_run(folder: Path) -> None:
    """What trainers leave beside the adapter: pickles, which nobody may open, and checkpoints."""
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"):
        (folder / name).write_bytes(b"\x80\x04no pickle may be read")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "checkpoint-5").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / "checkpoint-5" / name).write_bytes(b"not this one")


ACCEPTED: dict[str, Edit] = {
    **{f"PEFT {version}": whole_config(written_by(version)) for version in WRITTEN},
    "utf-8 with a mark": encoded("utf-8-sig"),
    "utf-16": encoded("utf-16"),
    "dead targets": fields(target_modules=[*tiny.ATTENTION, *tiny.MLP, "fc_in", "wte", "c_attn"]),
    "Unsloth's expression": fields(target_modules=REGEX),
    "all-linear": fields(target_modules="all-linear"),
    "Unsloth's marks": fields(
        auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "x", "unsloth_fixed": True},
        unsloth_fixed=True,
        unsloth_training=True,
    ),
    "fan_in_fan_out": fields(fan_in_fan_out=True),
    "nulls": fields(rank_pattern=None, alpha_pattern=None, bias=None, use_dora=None, lora_dropout=None),
    "a small type": fields(peft_type="lora"),
    "no path of the base": fields(base_model_name_or_path=None),
    "initialisation's settings": fields(init_lora_weights="eva", eva_config={"rho": 2.0}),
    "torch.compile": renamed(
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod.", 1)
    ),
    "FSDP": renamed(lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers.", 1)),
    "data parallel": renamed(lambda name: f"module.{name}"),
    "raw state": renamed(lambda name: name.replace(".weight", ".default.weight")),
    "without prefix": renamed(lambda name: name.removeprefix("base_model.model.")),
    "a training run": training_run,
}


def answered(base: Path, folder: Path, work: Path, *, merged: bool) -> np.ndarray:
    """The logits of the exported expert."""
    report = export(base, [folder], work / "out", precision="fp32", merged=merged)
    with Expert.load(work / "out" / report.packages[0].file, cache_dir=work / "cache", threads=1) as expert:
        return expert_logits(expert)


def assert_same(expected: np.ndarray, actual: np.ndarray) -> None:
    """Equal where the runtime computed logits."""
    computed = ~np.isnan(actual[:, 0])
    assert np.abs(expected - actual)[computed].max() < TOLERANCE


@BOTH
@pytest.mark.parametrize("edit", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(
    edit: Edit, merged: bool, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """However the same adapter is written, the answers are those of the adapter as PEFT saved it."""
    plain = expert_folder()
    folder = copied(plain, tmp_path / "expert")
    edit(folder)
    expected = peft_logits(model_folder("llama"), plain)
    assert_same(expected, answered(model_folder("llama"), folder, tmp_path, merged=merged))


@BOTH
@pytest.mark.parametrize("suffix", ["", ".weight", ".default.weight"])
def test_magnitudes(
    suffix: str, merged: bool, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """DoRA's magnitudes have had several names."""
    plain = expert_folder("dora")
    folder = copied(plain, tmp_path / "expert")
    name = "lora_magnitude_vector"
    renamed(lambda key: key.replace(f"{name}.weight", name).replace(name, name + suffix))(folder)
    expected = peft_logits(model_folder("llama"), plain)
    assert_same(expected, answered(model_folder("llama"), folder, tmp_path, merged=merged))


def two_names(folder: Path) -> None:
    """The same tensor twice, of two saved adapters perhaps."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        name = next(iter(tensors))
        tensors[name.replace(".weight", ".default.weight")] = tensors[name] + 1

    edit_tensors(folder / WEIGHTS, change)


def pickled(folder: Path) -> None:
    """Weights as PEFT saves them without safetensors."""
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Edit, str]] = {
    "layer_replication": (fields(layer_replication=[[0, 1], [0, 2]]), "layer_replication"),
    "alora_invocation_tokens": (fields(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "arrow_config": (fields(arrow_config={"top_k": 2}), "arrow_config"),
    "use_qalora": (fields(use_qalora=True), "use_qalora"),
    "use_bdlora": (fields(use_bdlora={"nblocks": 2}), "use_bdlora"),
    "megatron_config": (fields(megatron_config={"x": 1}), "megatron_config"),
    "a field of the future": (fields(a_field_of_the_future={"x": 1}), "a_field_of_the_future"),
    "corda": (fields(init_lora_weights="corda"), "init_lora_weights"),
    "lora_ga": (fields(init_lora_weights="lora_ga"), "init_lora_weights"),
    "fast pissa": (fields(init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    "only dead targets": (fields(target_modules=["fc_in"]), "fc_in"),
    "two names": (two_names, ".default.weight"),
    "a pickle": (pickled, "safe_serialization=True"),
}


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(
    edit: Edit,
    words: str,
    merge: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """What would change the answers is refused by name either way."""
    folder = copied(expert_folder(), tmp_path / "expert")
    edit(folder)
    error, message = refused(model_folder("llama"), folder, options=merge)
    assert "AdapterError" == error
    assert words in message
    assert "expert" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [5, 17]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.up_proj.weight"], "target_modules": ["q_proj"]}, "target_parameters"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"kasa_config": "KasaConfig"}, "kasa_config"),
        ({"monteclora_config": "MontecloraConfig"}, "monteclora_config"),
        ({"velora_config": "VeloraConfig"}, "velora_config"),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, "modules_to_save"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")  # PEFT has something to say about most of these
def test_only_merged(
    options: dict[str, Any], words: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """What cannot be swapped is refused with its name and --merge, and merged it gives PEFT's logits."""
    for name, value in options.items():
        if name.endswith("_config"):
            options = {name: getattr(peft.tuners.lora.config, value)()}
    base = model_folder("llama")
    folder = tiny.save_adapter(tmp_path / "expert", base, tiny.adapter_config("lora", **options))
    error, message = refused(base, tiny.with_manifest(folder))
    assert "AdapterError" == error
    assert words in message
    assert "--merge" in message
    assert_same(peft_logits(base, folder), answered(base, folder, tmp_path, merged=True))


def test_merged_base_stays_tied(model_folder: ModelFolder, expert_folder: ExpertFolder) -> None:
    """An adapter that leaves embedding and head alone leaves them one tensor."""
    base = load_base(model_folder("llama"))
    assert base.tied
    assert merge(base, expert_folder())[0].tied
