"""Sound exports stand verification, and the report says how near they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support import tiny
from support.exporting import CONFIG, WEIGHTS, contents, copied

from hivellm_export.pipeline import ExportReport, export
from hivellm_export.verify import report as reports
from hivellm_export.verify.report import BOUNDS, Verification
from hivellm_ort import ExportError
from hivellm_ort.cli.main import main

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]


def verifications(report: ExportReport) -> list[Verification]:
    """Of bundles, then of experts."""
    bundles = [bundle.verification for bundle in report.bundles if bundle.verification is not None]
    return [*bundles, *(one for package in report.packages for one in package.verification)]


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("llama", "fp32"), ("llama", "int4"), ("qwen2", "w8a8"), ("qwen3", "int8"), ("mistral", "int8")],
)
def test_bundle_and_expert(
    architecture: str, precision: str, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """Every precision stays within its bound, base and expert, with nothing left out."""
    experts = [expert_folder("dora", architecture)]
    report = export(model_folder(architecture), experts, tmp_path / "out", precision=precision, verify=True)
    found = verifications(report)
    assert 2 == len(found)
    assert ("", []) == (report.unverified, [text for one in found for text in one.omitted])
    for one in found:
        assert one.kl is not None
        assert one.kl < one.bound == BOUNDS[precision].kl
        assert one.tokens > 200
    assert report.seconds > report.verify_seconds > 0


@pytest.mark.parametrize("merged", [False, True], ids=["swapped", "merged"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_adapter_kinds(
    kind: str, merged: bool, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """What PEFT makes of an adapter is what the export has, module by module, for every kind."""
    if kind == "lokr" and not merged:
        pytest.skip("can only be merged")
    expert = expert_folder(kind, "qwen2")
    report = export(
        model_folder("qwen2"), [expert], tmp_path / "out", precision="fp32", merged=merged, verify=True
    )
    (one,) = report.packages[0].verification
    assert (True, []) == (one.kl is not None and one.kl < 1e-8, one.omitted)
    assert one.weights is not None
    assert one.weights < 1e-5


@pytest.mark.parametrize(
    ("target", "precision", "run"),
    [
        ("portable", "fp32", True),
        ("portable", "fp16", True),
        ("cuda", "fp16", False),  # Qwen3's norms are inside of attention there
        ("cuda", "bf16", False),
        ("dml", "fp16", True),
    ],
)
def test_targets(
    target: str,
    precision: str,
    run: bool,
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    tmp_path: Path,
) -> None:
    """Graphs that the CPU provider does not run are said to be compared in part: weights, rotary, adapter."""
    experts = [expert_folder("lora", "qwen3")]
    options = {"context": 48} if target in ("portable", "dml") else {}
    report = export(
        model_folder("qwen3"),
        experts,
        tmp_path / "out",
        target=target,
        precision=precision,
        verify=True,
        **options,
    )
    for one in verifications(report):
        assert run == (one.kl is not None)
        text = f"the CPU provider cannot run the {precision} graphs for {target}"
        assert ([] if run else [True]) == [text in omission for omission in one.omitted]


def test_several_targets(model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path) -> None:
    """Each bundle has a verification, and each expert one on each bundle, fat or thin or merged."""
    base, experts = model_folder("llama"), [expert_folder("lora", "llama")]
    for options in ({}, {"thin": True}, {"merged": True}):
        report = export(
            base,
            experts,
            tmp_path / "-".join(["out", *options]),
            target=["cpu", "portable"],
            verify=True,
            **options,
        )
        assert ["cpu", "portable"] == [
            bundle.verification.target for bundle in report.bundles if bundle.verification
        ]
        assert ["cpu", "portable"] == [one.target for one in report.packages[0].verification]
        assert all(one.kl is not None for one in verifications(report))


def test_rounded_cache(model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path) -> None:
    """Keys and values in 8 bits are compared as what they stand for, and have room in the bound."""
    experts = [expert_folder("dora", "llama")]
    report = export(model_folder("llama"), experts, tmp_path / "out", cache="int8", verify=True)
    for one in verifications(report):
        assert one.kl is not None
        assert one.kl < one.bound
        assert one.bound > BOUNDS["int8"].kl


def test_adapter_beyond_a_rounded_cache(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Keys and values that 8 bits cut off are an error, which says what to leave out."""
    base, expert = model_folder("llama"), tmp_path / "expert"
    tiny.with_manifest(tiny.save_adapter(expert, base, tiny.adapter_config("dora")))
    tensors = load_file(expert / WEIGHTS)
    save_file({name: 3 * tensor for name, tensor in tensors.items()}, expert / WEIGHTS, {"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.[01] \(keys by .* beyond its scales: leave it out$"):
        export(base, [expert], tmp_path / "out", precision="fp32", cache="int8", verify=True)
    assert not (tmp_path / "out").exists()


def test_same_bytes(model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path) -> None:
    """Verification changes nothing of what is written."""
    base, experts = model_folder("llama"), [expert_folder("ia3", "llama")]
    for verify in (False, True):
        export(base, experts, tmp_path / str(verify), thin=True, verify=verify)
    assert contents(tmp_path / "False") == contents(tmp_path / "True")


def test_references_of_an_expert(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """An expert's own recorded prompts are asked too."""
    tokens = []
    for name, lines in (("without", ""), ("with", json.dumps({"system": "Be brief.", "user": "Count all"}))):
        folder = copied(expert_folder("lora", "llama"), tmp_path / name)
        (folder / "references.jsonl").write_text(lines)
        report = export(model_folder("llama"), [folder], tmp_path / f"{name}-out", verify=True)
        tokens.append(report.packages[0].verification[0].tokens)
    assert len("Be brief.\nCount all") == tokens[1] - tokens[0]


def test_base_in_other_types(tmp_path: Path) -> None:
    """Weights in bfloat16 and in several files are read a second time too."""
    base = tiny.save_model(tmp_path / "base", "qwen2")
    model = tiny.load_model(base).to(torch.bfloat16)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="100KB")
    assert not (base / "model.safetensors").exists()
    report = export(base, [], tmp_path / "out", precision="fp32", verify=True)
    assert [0.0] == [one.weights for one in verifications(report)]


def test_tied_head_that_is_stored(tmp_path: Path) -> None:
    """A file may hold the LM head beside the embedding that it is tied to: transformers passes over it."""
    base = tiny.save_model(tmp_path / "base", "llama")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    report = export(base, [], tmp_path / "out", verify=True)
    assert "" == report.unverified


def test_adapter_that_peft_does_not_load(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PEFT fails there is nothing to compare with: the report says so, by the expert's name."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such thing")

    folder = copied(expert_folder("lora", "llama"), tmp_path / "expert")
    monkeypatch.setattr("peft.PeftModel.from_pretrained", fail)
    report = export(model_folder("llama"), [folder], tmp_path / "out", verify=True)
    (one,) = report.packages[0].verification
    assert (None, None) == (one.kl, one.weights)
    assert ["adapter: not compared; PEFT cannot load expert: no such thing"] == one.omitted


def test_names_that_peft_does_not_find(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """PEFT goes on without tensors whose names it does not know: what it then gives is no reference."""
    from hivellm_export.verify.adapters import load_peft

    folder = copied(expert_folder("lora", "llama"), tmp_path / "expert")
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {f"other.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    model = tiny.load_model(model_folder("llama"))
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match="the names of its tensors are not those that PEFT expects"):
        load_peft(model, folder, tables=False)
    assert names == [name for name, _ in model.named_modules()]


def test_stored_tables_change_nothing(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """Embedding and LM head beside a swappable adapter are not loaded into the model that the export holds."""
    from hivellm_export.verify.adapters import load_peft

    folder = copied(expert_folder("lora", "qwen2"), tmp_path / "expert")
    tensors, name = load_file(folder / WEIGHTS), "base_model.model.lm_head.weight"
    model = tiny.load_model(model_folder("qwen2"))
    before = model.lm_head.weight.detach().clone()
    save_file({**tensors, name: before * 2}, folder / WEIGHTS, {"format": "pt"})
    load_peft(model, folder, tables=False).unload()
    assert torch.equal(before, model.lm_head.weight)


def test_utf16_configuration(model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path) -> None:
    """PEFT gets a configuration that it can read, whatever the file's byte order mark."""
    from hivellm_export.verify.adapters import load_peft

    folder = copied(expert_folder("lora", "llama"), tmp_path / "expert")
    (folder / CONFIG).write_text((folder / CONFIG).read_text(), encoding="utf-16")
    adapted = load_peft(tiny.load_model(model_folder("llama")), folder, tables=False)
    assert 4 == adapted.peft_config["default"].r


def test_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by parameters, bundles and experts: SmolLM2 with three experts is verified, a model of 7 B is not."""
    monkeypatch.setattr(reports, "MOST_SECONDS", 60.0)
    assert "" == reports.skip_reason(135_000_000, 1, 3)
    assert "7000 M parameters" in reports.skip_reason(7_000_000_000, 1, 0)
    assert "" != reports.skip_reason(135_000_000, 4, 10)


def test_command(
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command says once for each export what verification found, or why it was left out."""
    arguments = [
        "export",
        "--base",
        str(model_folder("llama")),
        "--expert",
        str(expert_folder("lora", "llama")),
    ]

    def run(name: str, *options: str) -> tuple[str, str]:
        result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / name), *options])
        assert 0 == result.exit_code, result.output
        return result.stdout, result.stderr

    text, errors = run("small")
    assert 1 == (text + errors).count("verified")
    assert "\nverified  no: it would take about " in text
    assert "--verify" in text
    monkeypatch.setattr(reports, "MOST_SECONDS", 60.0)
    text, errors = run("default")
    assert 2 == text.count("nats a token (at most 0.05)")
    assert "" == errors
    text, errors = run("off", "--no-verify")
    assert ("verified  no: it was switched off", "") == (text.splitlines()[-2], errors)
    text, _ = run("json", "--verify", "--json")
    report = json.loads(text)
    assert {"kl", "agreement", "tokens", "seconds", "bound", "omitted"} <= report["bundles"][0][
        "verification"
    ].keys()
    assert 1 == len(report["packages"][0]["verification"])
