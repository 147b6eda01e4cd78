"""`hivellm-ort inspect` and `hivellm-ort pack`."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support.running import CONTEXT, PROMPT, Packages

from hivellm_ort import Expert
from hivellm_ort.cli.main import main

HIVELLM = Path(__file__).parents[2].parent / "shared" / "hivellm"
Invoke = Callable[..., Result]

MANIFEST: dict[str, Any] = {
    "name": "expert-folder",
    "version": "1.2.0",
    "schema_version": "2.0",
    "description": "Answers from a folder.",
    "license": "Apache-2.0",
    "capabilities": ["database:sql"],
    "routing": {"keywords": ["select", "table"]},
    "base_models": [
        {
            "name": "F:/models/tiny",
            "prompt_template": "qwen3",
            "adapters": [{"type": "dora", "r": 4, "alpha": 8, "target_modules": ["q_proj"]}],
        }
    ],
    "training": {"decoding": {"temperature": 0.7, "grammar_type": "sql", "use_grammar": True}},
}


@pytest.fixture
def invoke(packages: Packages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Run `hivellm-ort` with arguments, in an empty folder."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str | Path) -> Result:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["hivellm-ort", *texts])
        return CliRunner().invoke(main, texts)

    return run


@pytest.fixture
def folder(packages: Packages, tmp_path: Path) -> Path:
    """An expert's folder as a training run leaves it."""
    source = packages.lora_folder.with_name("dora")
    folder = tmp_path / "expert"
    (folder / "checkpoint-100").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "grammar.gbnf").write_text('root ::= "x"')
    for name in ("tokenizer.json", "README.md", "LICENSE", "train.py", "training_args.bin"):
        (folder / name).write_text(name)
    (folder / "checkpoint-100" / "optimizer.pt").write_text("pickle")
    return folder


def names(package: Path) -> list[str]:
    """The members of a package."""
    with tarfile.open(package) as archive:
        return archive.getnames()


def test_pack_takes_what_belongs_in_a_package(invoke: Invoke, folder: Path) -> None:
    """The manifest first, then adapter, tokenizer, grammar and texts; nothing of the training run."""
    result = invoke("pack", folder, "--json")
    assert 0 == result.exit_code, result.output
    report = json.loads(result.stdout)
    package = Path("expert-folder-tiny.v1.2.0.expert")
    assert {
        "file": str(package),
        "size": package.stat().st_size,
        "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "warnings": [],
    } == report
    expected = ["manifest.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    assert [*expected, "grammar.gbnf", "README.md", "LICENSE"] == names(package)


def test_pack_leaves_out_what_systems_add(invoke: Invoke, folder: Path) -> None:
    """A folder that Finder and Explorer looked into, or that came over a network drive, gives the same package."""
    assert 0 == invoke("pack", folder, "--output", "clean.expert").exit_code
    added = ["._manifest.json", "._adapter_model.safetensors", ".DS_Store", "Thumbs.db", "desktop.ini"]
    for name in (*added, "checkpoint-100/._adapter_model.safetensors"):
        (folder / name).write_bytes(b"added")
    assert 0 == invoke("pack", folder, "--output", "x.expert").exit_code
    assert Path("clean.expert").read_bytes() == Path("x.expert").read_bytes()


def test_pack_leaves_them_out_of_a_base(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """The same for an unpacked package with its base."""
    with tarfile.open(packages.dora) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
        expected = sorted(archive.getnames())
    for name in ("._onnx", "onnx/._decoder.onnx", "onnx/._weights.bin", "onnx/.DS_Store"):
        (tmp_path / "unpacked" / name).write_bytes(b"added")
    result = invoke("pack", tmp_path / "unpacked", "--output", "x.expert")
    assert (0, expected) == (result.exit_code, sorted(names(Path("x.expert"))))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_pack_writes_the_manifest_as_utf8(invoke: Invoke, folder: Path, encoding: str) -> None:
    """A manifest with a byte order mark is packed without one, as readers in other languages need it."""
    plain = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(plain.decode().encode(encoding))
    assert 0 == invoke("pack", folder, "--output", "x.expert").exit_code
    with tarfile.open("x.expert") as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        assert plain == member.read()


def test_inspect_shows_what_macos_added(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """A package that macOS packed again is inspected with a warning and runs as before."""
    with tarfile.open(packages.dora) as old, tarfile.open(tmp_path / "mac.expert", "w:gz") as new:
        for member in old:
            folder, _, last = member.name.rpartition("/")
            side = tarfile.TarInfo(f"{folder}/._{last}" if folder else f"._{last}")
            side.size = 4
            new.addfile(side, io.BytesIO(b"\0\5\x16\7"))
            new.addfile(member, old.extractfile(member))
    info = json.loads(invoke("inspect", tmp_path / "mac.expert", "--json").stdout)
    assert sorted(names(packages.dora)) == sorted(file["name"] for file in info["files"])
    assert len(info["files"]) == len(info["skipped"])
    assert ["._manifest.json"] == [text[:15] for text in info["warnings"] if "left out" in text]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    loaded = Expert.load(tmp_path / "mac.expert", cache_dir=tmp_path / "cache", threads=1, trust="off")
    with loaded as again, packages.load("dora") as expert:
        assert expert.generate(PROMPT, **options).tokens == again.generate(PROMPT, **options).tokens


def test_packed_folder_answers_as_the_exported_expert(
    invoke: Invoke, folder: Path, packages: Packages, tmp_path: Path
) -> None:
    """pack, then load on the base alone: the tokens of the package that export makes."""
    assert 0 == invoke("pack", folder, "--output", tmp_path / "x.expert").exit_code
    loaded = Expert.load(tmp_path / "x.expert", base=packages.base, cache_dir=tmp_path / "cache", threads=1)
    with loaded as bare, packages.load("dora") as exported:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "system": "x", "grammar": False}
        assert exported.generate(PROMPT, **options).tokens == bare.generate(PROMPT, **options).tokens


def test_pack_of_an_exported_package(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """An unpacked full package is packed with its onnx/ and runs by itself."""
    with tarfile.open(packages.dora) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
        expected = sorted(archive.getnames())
    assert 0 == invoke("pack", tmp_path / "unpacked", "--output", tmp_path / "x.expert").exit_code
    assert expected == sorted(names(tmp_path / "x.expert"))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    loaded = Expert.load(tmp_path / "x.expert", cache_dir=tmp_path / "cache", threads=1)
    with loaded as packed, packages.load("dora") as exported:
        assert exported.generate(PROMPT, **options).tokens == packed.generate(PROMPT, **options).tokens
    (tmp_path / "unpacked" / "onnx" / "tokenizer.json").write_text("{}")
    refused = invoke("pack", tmp_path / "unpacked", "--output", tmp_path / "y.expert")
    assert (2, False) == (refused.exit_code, (tmp_path / "y.expert").exists())
    assert "tokenizer.json" in refused.stderr


def test_pack_keeps_the_adapters_of_several_bases_apart(invoke: Invoke, folder: Path) -> None:
    """With several base models every adapter is packed at its own path."""
    models = []
    for size in ("small", "large"):
        (folder / "weights" / size).mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / "weights" / size / name).write_bytes((folder / name).read_bytes())
        adapters = [{**MANIFEST["base_models"][0]["adapters"][0], "path": size}]
        models.append({"name": size, "adapters": adapters})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "base_models": models}))
    assert 0 == invoke("pack", folder, "--output", "x.expert").exit_code
    found = [name for name in names(Path("x.expert")) if "adapter" in name]
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert [f"weights/{size}/{name}" for size in ("small", "large") for name in files] == found


def test_pack_strict(invoke: Invoke, folder: Path) -> None:
    """A manifest with faults is packed with warnings, and refused with --strict."""
    faulty = {**MANIFEST, "version": "one", "training": {"decoding": {"temprature": 0.7}}}
    (folder / "manifest.json").write_text(json.dumps(faulty))
    result = invoke("pack", folder, "--output", "x.expert")
    assert 0 == result.exit_code, result.output
    assert ["/training/decoding/temprature", "/version"] == sorted(
        line.split(": ")[2] for line in result.stderr.splitlines()
    )
    refused = invoke("pack", folder, "--output", "y.expert", "--strict")
    assert (2, False) == (refused.exit_code, Path("y.expert").exists())
    assert "/version" in refused.stderr
    assert "/training/decoding/temprature" in refused.stderr


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "truncated"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json"),
        (
            lambda folder: (folder / "manifest.json").write_text(
                json.dumps({**MANIFEST, "training": {"decoding": {"grammar_file": "sql.gbnf"}}})
            ),
            "/training/decoding/grammar_file is 'sql.gbnf'",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text(
                json.dumps({**MANIFEST, "training": {"decoding": {"grammar_file": "../expert/README.md"}}})
            ),
            "'../expert/README.md'",
        ),
    ],
    ids=["manifest", "adapter", "damaged", "config", "grammar", "leaves"],
)
def test_pack_refuses(break_it: Callable[[Path], object], message: str, invoke: Invoke, folder: Path) -> None:
    """A missing or damaged file is named, and nothing is written."""
    break_it(folder)
    result = invoke("pack", folder, "--output", "x.expert")
    assert isinstance(result.exception, SystemExit), result.exception
    assert (2, "") == (result.exit_code, result.stdout)
    assert message in result.stderr
    assert [] == list(Path().iterdir())


def test_inspect_an_exported_package(invoke: Invoke, packages: Packages) -> None:
    """Everything that a person asks of a package, and the same as JSON."""
    info = json.loads(invoke("inspect", packages.dora, "--json").stdout)
    assert (packages.dora.name, "expert-dora", "1.0.0") == (info["package"], info["name"], info["version"])
    assert "unsigned" == info["signature"]["verdict"]
    adapter = info["adapter"]
    assert ("prepared", "dora", 4) == (adapter["form"], adapter["kind"], adapter["rank"])
    assert {"q_proj", "down_proj"} < set(adapter["modules"])
    (base,) = info["bases"]
    assert ("tiny", "fp32", "cpu", CONTEXT) == tuple(
        base[key] for key in ("name", "precision", "target", "context")
    )
    assert "chat_template.jinja" == info["chat_template"]
    with tarfile.open(packages.dora) as archive:
        assert sorted(archive.getnames()) == sorted(member["name"] for member in info["files"])
        assert sum(member.size for member in archive.getmembers()) == info["bytes"]
    lines = invoke("inspect", packages.dora).stdout.splitlines()
    assert "expert:       expert-dora 1.0.0" == lines[0]
    assert f"base inside:  tiny fp32 for cpu, context {CONTEXT}" in lines
    assert any(line.startswith("adapter:      dora rank 4 on down_proj,") for line in lines)
    merged = invoke("inspect", packages.merged).stdout.splitlines()
    assert "adapter:      merged into the base" in merged


def test_inspect_a_folder(invoke: Invoke, folder: Path) -> None:
    """A folder of PEFT's files says what it needs, and what is wrong with it."""
    info = json.loads(invoke("inspect", folder, "--json").stdout)
    assert ("peft", "dora", 4) == tuple(info["adapter"][key] for key in ("form", "kind", "rank"))
    assert {"file": "grammar.gbnf", "bytes": 12, "type": "sql", "use": True} == info["grammar"]
    assert [{"name": "tiny", "sha256": None, "prompt_template": "qwen3"}] == info["base_models"]
    assert ({"temperature": 0.7}, []) == (info["decoding"], info["bases"])
    assert ["select", "table"] == info["routing"]["keywords"]
    assert [] == info["warnings"]
    lines = invoke("inspect", folder).stdout.splitlines()
    assert "base inside:  none: a bundle of the base model is needed" in lines
    assert "keywords:     select, table" in lines
    save_file({}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    broken = json.loads(invoke("inspect", folder, "--json").stdout)
    assert broken["adapter"] is None
    assert any("adapter_config.json" in warning for warning in broken["warnings"])


@pytest.mark.parametrize(
    "file",
    [
        "expert-json-qwen3-0-6b.v0.4.1.expert",
        "expert-json-signed.expert",
        "test-expert-v1-qwen306b.v1.0.0.expert",
        "test-expert-v1-signed.expert",
    ],
)
def test_inspect_published_packages(file: str, invoke: Invoke) -> None:
    """Packages of the reference packager are described, with all their faults."""
    if not HIVELLM.is_dir():
        pytest.skip("the published packages are not beside this checkout")
    result = invoke("inspect", HIVELLM / "packages" / file, "--json")
    assert 0 == result.exit_code, result.output
    info = json.loads(result.stdout)
    signed = "signed by unknown key ed25519:52c0ce67092cae0c…" if "signed" in file else "unsigned"
    assert signed == info["signature"]["verdict"]
    assert ("expert-json" if "json" in file else "test-expert-v1") == info["name"]
    assert [] == info["bases"]
    if "json" in file:
        assert ["training_args.bin"] == [member["name"] for member in info["skipped"]]
        assert (0.7, ["\n\n"]) == (info["decoding"]["temperature"], info["decoding"]["stop_sequences"])
        assert 1279 == info["grammar"]["bytes"]


def test_inspect_prints_no_control_characters(invoke: Invoke, folder: Path) -> None:
    """A description cannot move the terminal's cursor or write lines of its own."""
    hostile = {**MANIFEST, "description": "fine\n\x1b[2Jsignature:    verified by you"}
    (folder / "manifest.json").write_text(json.dumps(hostile))
    lines = invoke("inspect", folder).stdout.splitlines()
    assert r"about:        fine \x1b[2Jsignature: verified by you" in lines
    assert ["signature:    unsigned"] == [line for line in lines if line.startswith("signature")]


def test_inspect_what_is_no_package(invoke: Invoke, tmp_path: Path) -> None:
    """A damaged file is an error, on stdout too with --json."""
    (tmp_path / "x.expert").write_bytes(b"no archive")
    result = invoke("inspect", tmp_path / "x.expert", "--json")
    assert 2 == result.exit_code
    assert "IntegrityError" == json.loads(result.stdout)["error"]["type"]
