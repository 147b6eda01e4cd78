"""A wrong expert is refused by name, and the export leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from support import tiny
from support.exporting import (
    CONFIG,
    WEIGHTS,
    Refusal,
    Tensors,
    contents,
    copied,
    edit_json,
    edit_tensors,
    truncate,
)

from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExportError

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]

LAYER = "base_model.model.model.layers.0"
Q_A = f"{LAYER}.self_attn.q_proj.lora_A.weight"
Q_B = f"{LAYER}.self_attn.q_proj.lora_B.weight"
DOWN_M = f"{LAYER}.mlp.down_proj.lora_magnitude_vector"


def transpose(tensors: Tensors) -> None:
    """As a tool that mixes up the two conventions would write it."""
    tensors[Q_A] = tensors[Q_A].T


def poison(tensors: Tensors) -> None:
    """One value of a tensor is no number."""
    tensors[Q_A][0, 0] = np.nan


def round_off(tensors: Tensors) -> None:
    """A tensor of integers."""
    tensors[Q_A] = tensors[Q_A].astype(np.int32)


def add_unknown(tensors: Tensors) -> None:
    """A tensor of a module that the base does not have."""
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = np.zeros((4, 64), np.float32)


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize(
    ("kind", "change", "error", "tensor"),
    [
        ("lora", lambda tensors: tensors.pop(Q_B), "AdapterError", Q_B),
        ("dora", lambda tensors: tensors.pop(DOWN_M), "AdapterError", DOWN_M),
        ("lora", transpose, "BaseMismatchError", Q_A.removesuffix(".weight")),
        ("lora", add_unknown, "AdapterError", "layers.7.self_attn.q_proj.lora_A.weight"),
        ("lora", poison, "AdapterError", Q_A),
        ("lora", round_off, "AdapterError", Q_A),
    ],
    ids=["no-lora_B", "no-magnitude", "transposed", "unknown-module", "nan", "integers"],
)
def test_wrong_tensor(
    kind: str,
    change: Callable[[Tensors], object],
    error: str,
    tensor: str,
    merge: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """The message names the expert's folder, the file and the tensor, merged or not."""
    expert = copied(expert_folder(kind), tmp_path / "expert")
    edit_tensors(expert / WEIGHTS, change)
    found, message = refused(model_folder("llama"), expert, options=merge)
    assert error == found
    assert message.startswith(f"expert/{WEIGHTS}: tensor ")
    assert tensor in message


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
def test_adapter_of_another_size(
    merge: tuple[str, ...], model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An adapter of a model with another hidden size is a mismatch that names a tensor and both shapes."""
    other = tiny.save_model(tmp_path / "other", "llama", hidden_size=32)
    expert = tiny.save_adapter(tmp_path / "expert", other, tiny.adapter_config("lora"))
    tiny.with_manifest(expert)
    found, message = refused(model_folder("llama"), expert, options=merge)
    assert "BaseMismatchError" == found
    assert f"{WEIGHTS}: tensor base_model.model.model.layers." in message
    assert "[4, 32]" in message
    assert "[4, 64]" in message


def test_pinned_base(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A manifest that pins other weights refuses this base, and names both digests."""
    expert = copied(expert_folder(), tmp_path / "expert")
    tiny.with_manifest(expert, sha256="ab" * 32)
    report = export(model_folder("llama"), [], tmp_path / "bundle", precision="fp32")
    found, message = refused(model_folder("llama"), expert)
    assert "BaseMismatchError" == found
    assert "expert/manifest.json: /base_models/0/sha256" in message
    assert "abababababab" in message
    assert report.source_sha256[:12] in message


def test_unknown_target(
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """Where the base has none of the target_modules, the message names them."""
    expert = copied(expert_folder(), tmp_path / "expert")
    edit_json(expert / CONFIG, target_modules=["query_key_value"])
    found, message = refused(model_folder("llama"), expert)
    assert "AdapterError" == found
    assert message.startswith(f"expert/{CONFIG}: ")
    assert "target_modules" in message
    assert "query_key_value" in message


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize("kept", [-1, 2000, 4, 0], ids=["one-byte", "in-header", "in-length", "empty"])
def test_truncated_adapter(
    kept: int,
    merge: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A weights file that was cut off anywhere is called truncated."""
    expert = copied(expert_folder(), tmp_path / "expert")
    truncate(expert / WEIGHTS, to=kept)
    found, message = refused(model_folder("llama"), expert, options=merge)
    assert "AdapterError" == found
    assert message.startswith(f"expert/{WEIGHTS} is truncated or not a safetensors file: ")


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
def test_garbage_adapter(
    merge: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """A weights file that is a pickle under another name is not read."""
    expert = copied(expert_folder(), tmp_path / "expert")
    (expert / WEIGHTS).write_bytes(b"\x80\x04\x95" * 500)
    found, message = refused(model_folder("llama"), expert, options=merge)
    assert "AdapterError" == found
    assert message.startswith(f"expert/{WEIGHTS} is truncated or not a safetensors file: ")


@pytest.mark.parametrize(
    ("name", "error"),
    [(CONFIG, "AdapterError"), (WEIGHTS, "AdapterError"), ("manifest.json", "ManifestError")],
)
def test_missing_file(
    name: str,
    error: str,
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """Each of the three files of an expert is asked for by name."""
    expert = copied(expert_folder(), tmp_path / "expert")
    (expert / name).unlink()
    found, message = refused(model_folder("llama"), expert)
    assert error == found
    assert name in message


@pytest.mark.parametrize("merge", [(), ("--merge",)], ids=["swapped", "merged"])
@pytest.mark.parametrize("content", [b'{"r": 4', b"[1]", b"\xff\xfe", b""])
@pytest.mark.parametrize(("name", "error"), [(CONFIG, "AdapterError"), ("manifest.json", "ManifestError")])
def test_malformed_json(
    name: str,
    error: str,
    content: bytes,
    merge: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    refused: Refusal,
    tmp_path: Path,
) -> None:
    """JSON that is cut off, of another type, not UTF-8 or empty is an error of its file."""
    expert = copied(expert_folder(), tmp_path / "expert")
    (expert / name).write_bytes(content)
    found, message = refused(model_folder("llama"), expert, options=merge)
    assert error == found
    assert name in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("alora_invocation_tokens", [1, 2]),
        ("target_modules", "(a|b)" * 2000),
        ("target_modules", ".*a.*b.*c.*d.*e.*f"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("a_field_of_the_future", {"x": 1}),
        ("peft_type", "PROMPT_TUNING"),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("r", 0),
        ("lora_alpha", -1),
        ("target_modules", ["no_such_module"]),
        ("target_modules", None),
        ("target_modules", "(.*)*q_proj"),
        ("exclude_modules", "(["),
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
    """What cannot be swapped or would change the result is refused, and the message names the field."""
    expert = copied(expert_folder(), tmp_path / "expert")
    edit_json(expert / CONFIG, **{field: value})
    found, message = refused(model_folder("llama"), expert)
    assert "AdapterError" == found
    assert message.startswith(f"expert/{CONFIG}: ")
    assert field in message


def test_lokr_without_merge(model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal) -> None:
    """LoKr is not low-rank, and the message says to merge it."""
    found, message = refused(model_folder("llama"), expert_folder("lokr"))
    assert "AdapterError" == found
    assert "peft_type LOKR" in message
    assert "--merge" in message


def test_ia3_feedforward_on_attention(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """IA3 scaling the input of q_proj has no place in the graph."""
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=["q_proj"])
    expert = tiny.save_adapter(tmp_path / "expert", model_folder("llama"), config)
    found, message = refused(model_folder("llama"), tiny.with_manifest(expert))
    assert "AdapterError" == found
    assert "feedforward_modules" in message
    assert "model.layers.0.self_attn.q_proj" in message


def test_merge_takes_one_expert(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """--merge with two experts, none, or --thin is refused."""
    one = expert_folder()
    two = tiny.with_manifest(copied(one, tmp_path / "two"), "expert-two")
    for experts, options in (((one, two), ()), ((), ()), ((one,), ("--thin",))):
        found, message = refused(model_folder("llama"), *experts, options=("--merge", *options))
        assert "ExportError" == found
        assert "--merge" in message


def test_equal_names(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """Two experts that would be one file are refused."""
    other = copied(expert_folder("dora"), tmp_path / "dora")
    found, message = refused(model_folder("llama"), expert_folder(), other)
    assert "ExportError" == found
    assert "expert-tiny-tiny.v1.0.0.expert" in message


def test_second_expert_is_wrong(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """One wrong expert among several stops them all, and the message tells which."""
    other = tiny.with_manifest(copied(expert_folder("dora"), tmp_path / "second"), "expert-second")
    (other / CONFIG).write_text("{")
    found, message = refused(model_folder("llama"), expert_folder(), other)
    assert "AdapterError" == found
    assert message.startswith(f"second/{CONFIG}")


def test_output_is_in_use(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An output that is a file, or a folder with something in it, stays as it is."""
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    file.write_text("mine")
    for place in (full, file):
        found, message = refused(model_folder("llama"), expert_folder(), output=place)
        assert "ExportError" == found
        assert str(place) in message
        assert "--force" in message
    assert {"notes.txt": b"mine"} == contents(full)
    assert b"mine" == file.read_bytes()


def test_force_keeps_unrelated_files(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """--force replaces what has the same name, base/ as a whole, and nothing else."""
    output = tmp_path / "out"
    arguments = (model_folder("llama"), [expert_folder()], output)
    export(*arguments, precision="fp32", thin=True)
    fresh = contents(output)
    (output / "notes.txt").write_text("mine")
    (output / "base" / "stale.bin").write_text("of an earlier version")
    package = next(output.glob("*.expert"))
    package.write_text("of an earlier version")
    with pytest.raises(ExportError, match="--force"):
        export(*arguments, precision="fp32", thin=True)
    export(*arguments, precision="fp32", thin=True, force=True)
    assert {**fresh, "notes.txt": b"mine"} == contents(output)
    with Expert.load(package, base=output / "base", cache_dir=tmp_path / "cache", threads=1) as expert:
        assert "expert-tiny" == expert.name


def test_force_on_failure_changes_nothing(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An export that fails leaves what --force would have replaced."""
    output = tmp_path / "out"
    export(model_folder("llama"), [expert_folder()], output, precision="fp32")
    before = contents(output)
    expert = copied(expert_folder(), tmp_path / "expert")
    edit_tensors(expert / WEIGHTS, poison)
    refused(model_folder("llama"), expert, options=("--force",), output=output)
    assert before == contents(output)


@pytest.mark.parametrize("as_json", [False, True])
def test_from_a_shell(
    as_json: bool, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """The installed command ends with status 2, one line on standard error and no traceback."""
    expert = copied(expert_folder(), tmp_path / "expert")
    truncate(expert / WEIGHTS, to=100)
    command = shutil.which("hivellm-ort", path=str(Path(sys.executable).parent))
    assert command is not None
    parent = tmp_path / "parent"
    parent.mkdir()
    done = subprocess.run(
        [command, "export", "--base", model_folder("llama"), "--expert", expert, "--output", parent / "out"]
        + ["--json"] * as_json,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 2 == done.returncode, done.stderr
    assert [] == list(parent.iterdir())
    lines = done.stderr.splitlines()
    assert 1 == len(lines), done.stderr
    assert lines[0].startswith(f"error: expert/{WEIGHTS} is truncated")
    if as_json:
        document = json.loads(done.stdout)
        message = lines[0].removeprefix("error: ")
        assert {"error": {"type": "AdapterError", "message": message}} == document
    else:
        assert "" == done.stdout
