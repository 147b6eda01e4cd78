"""Exports for several targets: packages that carry them all, and what each device takes of one."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.exporting import Refusal, contents

from hivellm_export.pipeline import ExportReport, export
from hivellm_export.targets import plan_bundles
from hivellm_ort import Expert, ExportError, IntegrityError, LoadError, ProviderError, Trust
from hivellm_ort.cli.main import main
from hivellm_ort.contract import ADAPTER_GRAPH, DECODER_JSON, WEIGHTS_FILE
from hivellm_ort.engine.devices import Device
from hivellm_ort.loading.opening import verify
from hivellm_ort.loading.options import LoadSettings
from hivellm_ort.loading.parts import ExpertParts, find_parts
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.package.store import Store, open_package

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]
Exported = Callable[..., Path]
Invoke = Callable[..., Result]

PROMPT: dict[str, Any] = {"prompt": "select the users", "temperature": 0, "max_tokens": 12}
PRECISIONS = ("cpu=fp32", "portable=fp32")


@pytest.fixture(scope="module")
def exported(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """The output of an export of a tiny expert, by targets with their precisions and by options."""
    made: dict[tuple[object, ...], Path] = {}

    def make(*forms: str, **options: Any) -> Path:
        key = (forms, *options.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("several") / "out"
            targets = [form.partition("=")[0] for form in forms]
            experts = [expert_folder("dora")]
            export(model_folder("llama"), experts, made[key], target=targets, precision=forms, **options)
        return made[key]

    return make


def package_in(folder: Path) -> Path:
    """The package of an output folder."""
    (package,) = folder.glob("*.expert")
    return package


def members(package: Path) -> dict[str, bytes]:
    """The files of a package."""
    with tarfile.open(package) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def unpacked(package: Path, folder: Path) -> Path:
    """The files of a package in a folder."""
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return folder


def parts_of(package: Path, cache: Path, **options: Any) -> ExpertParts:
    """What would be loaded."""
    settings = LoadSettings(cache_dir=cache, trust=Trust("off"), **options)
    store = settings.store()
    return find_parts(verify(open_package(package, store), package, settings.trust), store, settings)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run `hivellm-ort` with a cache of its own."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "home"))

    def run(*arguments: str | Path) -> Result:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["hivellm-ort", *texts])
        return CliRunner().invoke(main, texts)

    return run


def test_members(exported: Exported) -> None:
    """The adapter once, each target's list, and every other file once however many targets list it."""
    files = members(package_in(exported("cpu=fp32", "dml=fp16", "portable=fp16")))
    own = [name for name in files if name.startswith("onnx/")]
    graphs = ["decoder.adapters.onnx", "decoder.onnx"]
    texts = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert [
        "onnx/adapter.safetensors",
        *(
            f"onnx/cpu/{name}"
            for name in ("decoder.json", "chat_template.jinja", *graphs, *texts, WEIGHTS_FILE)
        ),
        *(f"onnx/dml/{name}" for name in ("decoder.json", *graphs, WEIGHTS_FILE)),
        # Of the same floats in the same places as DirectML's.
        *(f"onnx/portable/{name}" for name in ("decoder.json", *graphs)),
    ] == own
    digests = [hashlib.sha256(files[name]).digest() for name in own]
    assert len(own) == len(set(digests))


def test_bases_are_those_of_single_exports(exported: Exported, tmp_path: Path) -> None:
    """Each target's base has the bytes, and so the digest, that an export for it alone has."""
    store, forms = Store(tmp_path / "cache"), ("cpu=fp32", "cuda=bf16", "dml=fp16", "portable=fp32")
    several = store.unpack(package_in(exported(*forms)))
    for form, folder in zip(forms, several.bundles, strict=True):
        (alone,) = store.unpack(package_in(exported(form))).bundles
        assert alone == folder
        assert contents(exported(form, thin=True) / "base") == contents(folder)
        assert (folder / "tokenizer.json").samefile(several.bundles[0] / "tokenizer.json")
    assert len(forms) == len(store.bundles())


def test_order_does_not_matter(exported: Exported) -> None:
    """Targets in another order give the same bytes."""
    assert contents(exported(*PRECISIONS)) == contents(exported(*reversed(PRECISIONS)))


def test_the_cpu_takes_its_graphs(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the CPU the package answers as the one for the CPU alone, and the log says what was taken and why."""
    cache = tmp_path / "cache"
    with Expert.load(package_in(exported("cpu=fp32")), cache_dir=cache, threads=1) as alone:
        expected = alone.generate(**PROMPT).tokens
    for device in ("cpu", None):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="hivellm_ort"),
            Expert.load(
                package_in(exported(*PRECISIONS)), cache_dir=cache, device=device, threads=1
            ) as expert,
        ):
            assert ("cpu", expected) == (expert.base.target, expert.generate(**PROMPT).tokens)
        start = (
            "expert-tiny has graphs for cpu, portable; used are those for cpu fp32 on CPUExecutionProvider ("
        )
        (message,) = [text for text in caplog.messages if "used are" in text]
        assert message.startswith(start + f"device {device or 'auto'!r}")
        assert "; not portable fp32 on CPUExecutionProvider" in message


def test_what_there_is_is_taken(exported: Exported, tmp_path: Path) -> None:
    """Without graphs of its own a device takes those for any runtime."""
    for form in (("portable=fp32",), ("cuda=fp16", "portable=fp32")):
        parts = parts_of(package_in(exported(*form)), tmp_path / "cache", device=Device("cpu"))
        assert "portable" == parts.bundle.config.target


def test_device_that_runs_none(exported: Exported, tmp_path: Path) -> None:
    """The error names the device, what is installed, what to do and the targets of the package."""
    package = package_in(exported("cpu=fp32", "dml=fp16"))
    with pytest.raises(ProviderError) as caught:
        Expert.load(package, cache_dir=tmp_path / "cache", device="cuda")
    message = str(caught.value)
    assert message.startswith("device 'cuda': CUDAExecutionProvider: the installed onnxruntime ")
    parts = ("hivellm-ort[cuda]", "fallback=True", "expert-tiny has graphs for cpu, dml only")
    assert [] == [part for part in parts if part not in message]
    loaded = Expert.load(package, cache_dir=tmp_path / "cache", device="cuda", fallback=True, threads=1)
    with loaded as expert:
        assert "cpu" == expert.base.target


def test_base_that_is_given(exported: Exported, tmp_path: Path) -> None:
    """The target of base= is the one, whatever the package carries."""
    base = exported("portable=fp32", thin=True) / "base"
    package = package_in(exported(*PRECISIONS))
    assert base == parts_of(package, tmp_path / "cache", base=base, device=Device("cpu")).bundle.folder


def test_thin(exported: Exported, tmp_path: Path) -> None:
    """The bases are beside the packages by target; a thin package is the same for any number of them."""
    output = exported(*PRECISIONS, thin=True)
    package = package_in(output)
    assert ["cpu", "portable"] == sorted(path.name for path in (output / "base").iterdir())
    assert package_in(exported("cpu=fp32", thin=True)).read_bytes() == package.read_bytes()
    for target in ("cpu", "portable"):
        alone = exported(f"{target}=fp32", thin=True) / "base"
        assert contents(alone) == contents(output / "base" / target)


def test_thin_package_finds_the_base_for_the_device(exported: Exported, tmp_path: Path) -> None:
    """Of bundles at hand the device decides, and what it does not run does not count."""
    output, cache = exported("cpu=fp32", "dml=fp16", "portable=fp32", thin=True), tmp_path / "cache"
    models, package = cache / "models" / "tiny", tmp_path / "alone.expert"
    shutil.copy(package_in(output), package)

    def found(*targets: str) -> str:
        shutil.rmtree(models, ignore_errors=True)
        for target in targets:
            shutil.copytree(output / "base" / target, models / target)
        return parts_of(package, cache, device=Device("cpu")).bundle.config.target

    assert "cpu" == found("portable", "cpu", "dml")
    assert "portable" == found("portable", "dml")
    with pytest.raises(ProviderError, match=r"base 'llama' has graphs for dml.*use device='dml'"):
        found("dml")
    with pytest.raises(LoadError, match="nor in the cache"):
        found()


def test_bare_package(exported: Exported, tmp_path: Path) -> None:
    """An adapter as PEFT has it is prepared on the base for the device, in the package or at hand."""
    output, cache = exported(*PRECISIONS), tmp_path / "cache"
    folder = unpacked(package_in(output), tmp_path / "bare")
    (folder / "onnx/adapter.safetensors").unlink()
    exact = parts_of(package_in(output), cache).adapter
    adapter = parts_of(folder, cache, device=Device("cpu")).adapter
    assert exact is not None
    assert adapter is not None
    assert exact.to_bytes() == adapter.to_bytes()
    shutil.rmtree(folder / "onnx")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["base_models"][0]["sha256"] = exact.source_sha256
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert "cpu" == parts_of(folder, cache).bundle.config.target


def test_tampered_shared_file(exported: Exported, tmp_path: Path) -> None:
    """A file that both targets use is refused when it changes, with the list beside it or alone."""
    folder = unpacked(package_in(exported(*PRECISIONS)), tmp_path / "folder")
    (folder / "onnx/cpu/tokenizer.json").write_text("{}")

    def load() -> None:
        with tarfile.open(tmp_path / "p.expert", "w:gz") as archive:
            archive.add(folder, ".")
        Expert.load(tmp_path / "p.expert", cache_dir=tmp_path / "cache")

    with pytest.raises(IntegrityError, match=r"onnx/cpu/ file 'tokenizer\.json' has 2 bytes"):
        load()
    path = folder / "onnx/cpu" / DECODER_JSON
    document = json.loads(path.read_text())
    document["files"]["tokenizer.json"] = {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"onnx/portable/ file 'tokenizer\.json' is listed"):
        load()


def test_folder_in_place(exported: Exported, tmp_path: Path) -> None:
    """An unpacked package loads where it is; for a base that shares files there is a copy in the store."""
    cache = tmp_path / "cache"
    folder = unpacked(package_in(exported(*PRECISIONS)), tmp_path / "folder")
    assert folder / "onnx/cpu" == parts_of(folder, cache, device=Device("cpu")).bundle.folder
    store = Store(cache)
    package = open_package(folder, store)
    gathered = store.gather_bundle(package.bundles[1], package)
    assert contents(exported("portable=fp32", thin=True) / "base") == contents(gathered)


def test_inspect_and_pack(exported: Exported, invoke: Invoke, tmp_path: Path) -> None:
    """The command inspect shows each target; pack of the unpacked package makes the same members."""
    package = package_in(exported(*PRECISIONS))
    info = json.loads(invoke("inspect", package, "--json").stdout)
    assert [("cpu", "fp32"), ("portable", "fp32")] == [
        (one["target"], one["precision"]) for one in info["bases"]
    ]
    assert ("prepared", "chat_template.jinja") == (info["adapter"]["form"], info["chat_template"])
    lines = [
        line for line in invoke("inspect", package).stdout.splitlines() if line.startswith("base inside:")
    ]
    assert [" fp32 for cpu, ", " fp32 for portable, "] == [
        next(text for text in (" fp32 for cpu, ", " fp32 for portable, ") if text in line) for line in lines
    ]
    folder = unpacked(package, tmp_path / "folder")
    again = invoke("pack", folder, "--output", tmp_path / "again.expert")
    assert 0 == again.exit_code, again.output
    assert members(package) == members(tmp_path / "again.expert")


def test_sign_and_verify(exported: Exported, invoke: Invoke, tmp_path: Path) -> None:
    """A signature covers the files of every target, and what they share."""
    package = tmp_path / "p.expert"
    package.write_bytes(package_in(exported(*PRECISIONS)).read_bytes())
    assert 0 == invoke("keygen", tmp_path / "publisher.key").exit_code
    assert 0 == invoke("sign", package, "--key", tmp_path / "publisher.key").exit_code
    verified = ("--key", tmp_path / "publisher.pub")
    assert 0 == invoke("verify", package, *verified).exit_code
    assert {*members(package_in(exported(*PRECISIONS)))} == {*members(package)}
    folder = unpacked(package, tmp_path / "folder")
    assert 0 == invoke("verify", folder, *verified).exit_code
    extra = folder / "onnx/portable/tokenizer.json"
    extra.write_bytes((folder / "onnx/cpu/tokenizer.json").read_bytes())
    result = invoke("verify", folder, *verified)
    assert (1, True) == (result.exit_code, "onnx/portable/tokenizer.json' was added" in result.stdout)


def test_merged(exported: Exported, tmp_path: Path) -> None:
    """Several targets of a merged expert each hold it, and no adapter."""
    package = package_in(exported(*PRECISIONS, merged=True))
    names = [name for name in members(package) if name.startswith("onnx/")]
    assert [] == [name for name in names if name.endswith(("adapter.safetensors", ADAPTER_GRAPH))]
    cache = tmp_path / "cache"
    with (
        Expert.load(package, cache_dir=cache, device="cpu", threads=1) as merged,
        Expert.load(package_in(exported("cpu=fp32")), cache_dir=cache, threads=1) as swapped,
    ):
        assert ("cpu", None) == (merged.base.target, merged.adapter)
        assert swapped.generate(**PROMPT).tokens == merged.generate(**PROMPT).tokens


def test_bases_alone(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Without experts every target has its folder, and the report says which."""
    report = export(
        model_folder("llama"), [], tmp_path / "out", target=("portable", "cpu"), precision="cpu=fp32"
    )
    assert ["cpu", "portable"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [("cpu", "fp32", "cpu"), ("portable", "fp32", "portable")] == places(report)
    alone = export(model_folder("llama"), [], tmp_path / "alone", precision="fp32")
    assert [("cpu", "fp32", ".")] == places(alone)
    assert alone.bundles[0].sha256 == report.bundles[0].sha256
    assert contents(tmp_path / "alone") == contents(tmp_path / "out" / "cpu")


def places(report: ExportReport) -> list[tuple[str, str, str | None]]:
    """Target, precision and folder of each bundle of a report."""
    return [(bundle.target, bundle.precision, bundle.folder) for bundle in report.bundles]


def test_command(
    model_folder: ModelFolder, expert_folder: ExpertFolder, invoke: Invoke, tmp_path: Path
) -> None:
    """The options of the command, its report, and a line for each bundle."""
    arguments = ["export", "--base", model_folder("llama"), "--expert", expert_folder("dora"), "--thin"]
    arguments += ["--target", "portable", "--target", "cpu", "--precision", "cpu=fp32", "--context", "64"]
    result = invoke(*arguments, "--output", tmp_path / "out", "--json")
    assert 0 == result.exit_code, result.output
    document = json.loads(result.stdout)
    folders = {bundle["target"]: bundle["folder"] for bundle in document["bundles"]}
    assert {"cpu": "base/cpu", "portable": "base/portable"} == folders
    lengths = [
        json.loads((tmp_path / "out" / folder / DECODER_JSON).read_text())["graph"]["shapes"].get(
            "max_length"
        )
        for folder in folders.values()
    ]
    assert [None, [64]] == lengths
    lines = invoke(*arguments, "--output", tmp_path / "more").stdout.splitlines()
    assert ["base", "bundle", "base", "bundle", "package", "verified", "done"] == [
        line.split()[0] for line in lines
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target cpu --target cpu", "--target cpu is given twice"),
        (
            "--target cpu --target portable --precision fp32",
            "this export has several targets, cpu, portable: name one",
        ),
        (
            "--target cpu --target dml --precision dml=fp32",
            "--target dml has no --precision fp32: use fp16, or",
        ),
        (
            "--target cpu --precision portable=fp16",
            "portable is not a target of this export (cpu): add --target",
        ),
        ("--target cpu --precision cpu=int8 --precision int4", "int8 and int4 are both for target cpu"),
        ("--target cpu --precision =int4", "--precision =int4: "),
        ("--target cpu --precision cpu=", "--target cpu has no --precision "),
        ("--target cpu --target cuda --context 64", "--context 64 is for targets with fixed shapes"),
        (
            "--target cpu --target dml --context 129 --precision cpu=fp32",
            "--context 129: the model has 128 positions",
        ),
    ],
)
def test_what_is_refused(options: str, message: str, refused: Refusal, model_folder: ModelFolder) -> None:
    """Each mistake is named, with what goes instead, and nothing is written."""
    words = options.split()
    if "--precision" not in words:
        words += ["--precision", "cpu=fp32"]
    error = refused(model_folder("llama"), options=tuple(words))
    assert "ExportError" == error[0]
    assert message in error[1]


def test_plans() -> None:
    """Each target has its default precision, and the context is for those of fixed shapes."""
    plans = plan_bundles(["portable", "cuda", "cpu"], ["cuda=int4"], 64)
    found = [(plan.target.name, plan.precision.name, plan.context) for plan in plans]
    assert [("cpu", "int8", None), ("cuda", "int4", None), ("portable", "fp32", 64)] == found
    with pytest.raises(ExportError, match="choose one of cpu, cuda, dml, portable"):
        plan_bundles(["cpu", "npu"])
