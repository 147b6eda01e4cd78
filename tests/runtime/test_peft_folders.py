"""From a PEFT folder to answers and to a package: `Expert.load`, `hivellm-ort init`, `pack`, and a base beside it."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest
from support.extras import HAS_EXPORT
from support.golden import bundle, golden
from support.running import PROMPT, Packages

from hivellm_ort import (
    AdapterError,
    Expert,
    ExpertManager,
    IntegrityError,
    LoadError,
    ManifestError,
    Trust,
)
from hivellm_ort.cli import init as init_module
from hivellm_ort.cli.main import main
from hivellm_ort.package.manifest import ExpertManifest

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
TOLD = (
    "--description", "Answers from a folder.", "--license", "Apache-2.0", "--capability", "task:answers",
)  # fmt: skip
TEMPLATE = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}### assistant:\n"

Invoke = Callable[..., click.testing.Result]


@pytest.fixture(scope="module")
def base(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base bundle of the experts."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return Path(shutil.copytree(packages.base, folder))


@pytest.fixture
def folder(packages: Packages, tmp_path: Path) -> Path:
    """A folder as PEFT saves it."""
    source = packages.lora_folder.with_name("dora")
    folder = tmp_path / "My adapter"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Run `hivellm-ort` in an empty folder, as no terminal."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str | Path, **options: Any) -> click.testing.Result:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["hivellm-ort", *texts])
        return click.testing.CliRunner().invoke(main, texts, **options)

    return run


def tokens(path: Path, base: Path | None, cache: Path, **options: Any) -> tuple[int, ...]:
    """Return an expert's answer."""
    with Expert.load(path, base=base, cache_dir=cache, threads=1, **options) as expert:
        return expert.generate(PROMPT, **GREEDY).tokens


def expected(packages: Packages) -> tuple[int, ...]:
    """The answer of the exported package."""
    with packages.load("dora") as expert:
        return expert.generate(PROMPT, **GREEDY).tokens


def refusal(result: click.testing.Result) -> str:
    """The one line of an error."""
    assert 2 == result.exit_code, result.output
    assert 1 == result.stderr.count("\n"), result.stderr
    return result.stderr


def test_loads_without_a_manifest(packages: Packages, base: Path, folder: Path, tmp_path: Path) -> None:
    """A folder of two files answers as its package, and is called after the folder."""
    assert expected(packages) == tokens(folder, base, tmp_path / "cache")
    with Expert.load(folder, base=base, cache_dir=tmp_path / "cache", threads=1) as expert:
        assert ("expert-my-adapter", "0.0.0") == (expert.name, expert.manifest.version)
        assert "unsigned" == expert.verdict.status
    assert {CONFIG, WEIGHTS} == {path.name for path in folder.iterdir()}


def test_unsigned_as_any_folder(base: Path, folder: Path, tmp_path: Path) -> None:
    """A folder cannot be signed without a manifest, so `require` refuses it; and one that was signed tells."""
    with pytest.raises(IntegrityError, match="unsigned"):
        tokens(folder, base, tmp_path / "cache", trust="require")
    (folder / "signature.sig").write_text("00" * 64)
    with pytest.raises(IntegrityError, match="integrity block was taken out"):
        tokens(folder, base, tmp_path / "cache")


def test_manager_and_command_line(
    packages: Packages, base: Path, folder: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """A folder is a path as any other for the manager, `run` and `inspect`."""
    with ExpertManager(cache_dir=tmp_path / "cache", threads=1, trust="off") as manager:
        manager.load_experts({"mine": folder}, base=base)
        assert expected(packages) == manager.generate("mine", PROMPT, **GREEDY).tokens
    result = invoke(
        "run", folder, PROMPT, "--base", base, "--json", "--max-tokens", "12", "--temperature", "0"
    )
    assert 0 == result.exit_code, result.output
    assert expected(packages) == tuple(json.loads(result.stdout)["tokens"])
    found = json.loads(invoke("inspect", folder, "--json").stdout)
    assert ("expert-my-adapter", "peft", []) == (found["name"], found["adapter"]["form"], found["warnings"])


@pytest.mark.parametrize("place", ["", "checkpoint-7"])
def test_own_template(
    place: str, packages: Packages, base: Path, folder: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """Prompts are written with the template that the adapter was trained on: folder, package and export alike."""
    where = folder / place
    where.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).replace(where / name)
    (where / "chat_template.jinja").write_bytes(TEMPLATE.replace("\n", "\r\n").encode("utf-8-sig"))
    (where / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    text = f"### user:\n{PROMPT}\n### assistant:"
    if not place:
        with Expert.load(where, base=base, cache_dir=tmp_path / "cache", threads=1) as expert:
            assert text == expert._builder.template.render([{"role": "user", "content": PROMPT}])
            answer = expert.generate(PROMPT, **GREEDY).tokens
        assert expected(packages) != answer
        assert 0 == invoke("init", folder, *TOLD).exit_code
    else:
        manifest = {
            "name": "expert-x", "version": "1.0.0", "base_models": [{"name": "t", "adapters": [{"type": "dora"}]}],
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest))
    assert 0 == invoke("pack", folder, "--output", "x.expert").exit_code
    packages_made = [Path("x.expert")]
    if not place and HAS_EXPORT:
        from hivellm_export.pipeline import export

        report = export(packages.model, [folder], tmp_path / "out", precision="fp32")
        packages_made.append(tmp_path / "out" / report.packages[0].file)
    for package in packages_made:
        with Expert.load(package, base=base, cache_dir=tmp_path / "cache", threads=1) as expert:
            assert text == expert._builder.template.render([{"role": "user", "content": PROMPT}])


def test_own_template_and_a_word_of_the_manifest(
    base: Path, folder: Path, invoke: Invoke, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt template that the manifest names takes precedence, with a warning."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert 0 == invoke("init", folder, *TOLD, "--prompt-template", "alpaca").exit_code
    with (
        caplog.at_level(logging.WARNING, "hivellm_ort"),
        Expert.load(folder, base=base, cache_dir=tmp_path / "cache", threads=1, trust="off") as expert,
    ):
        assert expert._builder.template.render([{"role": "user", "content": "x"}]).startswith(
            "### Instruction:"
        )
    assert ["'alpaca'" in message for message in caplog.messages] == [True]


def test_own_end_token(base: Path, folder: Path, tmp_path: Path) -> None:
    """The end token of the adapter's tokenizer ends its answers; text in UTF-16 is read."""
    document = json.dumps({"eos_token": {"content": "<|im_start|>"}})
    (folder / "tokenizer_config.json").write_bytes(document.encode("utf-16"))
    with Expert.load(folder, base=base, cache_dir=tmp_path / "cache", threads=1, trust="off") as expert:
        assert 1 in expert._builder.eos_token_ids


def test_broken_template(base: Path, folder: Path, tmp_path: Path) -> None:
    """A template with a fault is refused with folder, file and line."""
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(LoadError, match=r"My adapter/chat_template.jinja, line 1"):
        tokens(folder, base, tmp_path / "cache")


def test_pickles_are_not_packed(folder: Path, invoke: Invoke) -> None:
    """Of a training run's folder the package has the adapter and texts, in UTF-8."""
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "README.md"):
        (folder / name).write_bytes(b"\x80\x04")
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_bytes(text.encode("utf-16"))
    assert 0 == invoke("init", folder, *TOLD).exit_code
    assert 0 == invoke("pack", folder, "--strict", "--output", "x.expert").exit_code
    with tarfile.open("x.expert") as archive:
        assert [MANIFEST, CONFIG, WEIGHTS, "README.md"] == archive.getnames()
        member = archive.extractfile(CONFIG)
        assert member is not None
        assert text == member.read().decode("utf-8")


def test_init_then_pack(packages: Packages, base: Path, folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """Init writes what `pack --strict` takes, and the package answers as the folder."""
    result = invoke(
        "init", folder, *TOLD, "--base", base, "--stop", "###", "--max-tokens", "12", "--temperature", "0",
        "--author", "me", "--keyword", "answers", "--json",
    )  # fmt: skip
    assert 0 == result.exit_code, result.output
    report = json.loads(result.stdout)
    assert json.loads((folder / MANIFEST).read_text()) == report["manifest"]
    manifest = ExpertManifest.from_file(folder / MANIFEST, strict=True)
    model = manifest.base_models[0]
    assert ("expert-my-adapter", "0.1.0", "tiny", None) == (
        manifest.name,
        manifest.version,
        model.short_name,
        model.prompt_template,
    )
    assert json.loads((base / "decoder.json").read_text())["source_sha256"] == model.sha256
    adapter = model.adapters[0]
    assert ("dora", 4, 8.0, 3) == (adapter.type, adapter.r, adapter.alpha, len(adapter.target_modules))
    assert (("###",), 12, 0.0) == (
        manifest.decoding.stop_sequences,
        manifest.decoding.max_new_tokens,
        manifest.decoding.temperature,
    )
    assert 0 == invoke("pack", folder, "--strict", "--output", "x.expert").exit_code
    assert expected(packages) == tokens(Path("x.expert"), base, tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("lora", {"type": "lora", "r": 4, "alpha": 8.0}),
        ("ia3", {"type": "ia3", "feedforward_modules": ["down_proj"]}),
    ],
)
def test_init_of_other_kinds(
    kind: str, adapter: dict[str, Any], packages: Packages, invoke: Invoke, tmp_path: Path
) -> None:
    """Every kind has the fields that the schema wants of it."""
    copy = tmp_path / kind
    copy.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(packages.lora_folder.with_name(kind) / name, copy / name)
    assert 0 == invoke("init", copy, *TOLD).exit_code
    assert 0 == invoke("pack", copy, "--strict", "--output", "x.expert").exit_code
    found = json.loads((copy / MANIFEST).read_text())["base_models"][0]["adapters"][0]
    assert adapter.items() <= found.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--description is missing"),
        (TOLD[:2], "--license is missing"),
        (TOLD[:4], "--capability is missing"),
        ((*TOLD, "--name", "My Expert"), "--name: manifest.json: /name"),
        ((*TOLD, "--version", "1"), "--version: manifest.json: /version"),
        ((*TOLD, "--capability", ""), "--capability: manifest.json: /capabilities/1"),
    ],
)
def test_init_says_which_option(arguments: tuple[str, ...], words: str, folder: Path, invoke: Invoke) -> None:
    """Without a terminal nothing is asked: the message names the option, and nothing is written."""
    assert words in refusal(invoke("init", folder, *arguments))
    assert {CONFIG, WEIGHTS} == {path.name for path in folder.iterdir()}


def test_init_needs_a_base(folder: Path, invoke: Invoke) -> None:
    """Where adapter_config.json tells no base, it is asked for."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "--base is missing" in refusal(invoke("init", folder, *TOLD))
    assert 0 == invoke("init", folder, *TOLD, "--base", "Tiny-1B").exit_code


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("unsloth/Qwen3-0.6B-unsloth-bnb-4bit", "Qwen3-0.6B"),
        ("F:\\models\\Tiny\\", "Tiny"),
        ("/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/0123abcd", "Qwen3-0.6B"),
    ],
)
def test_name_of_the_base(path: str, name: str, folder: Path, invoke: Invoke) -> None:
    """The base is called as people call it, wherever it was on the trainer's machine."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": path}))
    assert 0 == invoke("init", folder, *TOLD).exit_code
    assert name == json.loads((folder / MANIFEST).read_text())["base_models"][0]["name"]


def test_init_asks_on_a_terminal(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it asks for what no option says, with what the folder tells as defaults."""
    monkeypatch.setattr(init_module, "input_is_a_terminal", lambda: True)
    answers = "expert-mine\n\nTiny\nAnswers.\nMIT\ntask:answers, language:en\n"
    result = invoke("init", folder, input=answers)
    assert 0 == result.exit_code, result.output
    manifest = ExpertManifest.from_file(folder / MANIFEST, strict=True)
    assert ("expert-mine", "0.1.0", "MIT") == (manifest.name, manifest.version, manifest.license)
    assert ("task:answers", "language:en") == manifest.capabilities


def test_init_never_overwrites(folder: Path, invoke: Invoke) -> None:
    """A manifest that is there stays, unless --force says otherwise."""
    (folder / MANIFEST).write_text("mine")
    assert "--force" in refusal(invoke("init", folder, *TOLD))
    assert "mine" == (folder / MANIFEST).read_text()
    assert 0 == invoke("init", folder, *TOLD, "--force").exit_code
    assert "expert-my-adapter" == ExpertManifest.from_file(folder / MANIFEST, strict=True).name


def test_init_tells_of_a_dialect(folder: Path, invoke: Invoke) -> None:
    """A capability that adds a system message to prompts is reported."""
    result = invoke("init", folder, *TOLD, "--capability", "database:sql")
    assert 0 == result.exit_code
    assert "'Dialect: sql'" in result.stderr


def test_init_of_a_wrong_folder(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """A folder without an adapter is refused with the missing or wrong file, and nothing is written."""
    assert "nowhere" in refusal(invoke("init", tmp_path / "nowhere", *TOLD))
    (tmp_path / "empty").mkdir()
    assert CONFIG in refusal(invoke("init", tmp_path / "empty", *TOLD))
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    message = refusal(invoke("init", folder, *TOLD))
    assert "adapter_model.bin" in message
    assert "safe_serialization=True" in message
    assert not (folder / MANIFEST).exists()


def test_commands_name_init(packages: Packages, folder: Path, invoke: Invoke) -> None:
    """Without a manifest pack and export say which command writes it."""
    commands: list[tuple[Any, ...]] = [("pack", folder)]
    if HAS_EXPORT:
        commands.append(("export", "--base", packages.model, "--expert", folder, "--output", "o"))
    for arguments in commands:
        assert f"hivellm-ort init {folder}" in refusal(invoke(*arguments))
    assert [] == list(Path().iterdir())


def test_loading_errors_name_the_folder(base: Path, folder: Path, tmp_path: Path) -> None:
    """A configuration with a fault is refused with folder, file and field."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "layer_replication": [[0, 1]]}))
    document = {
        "name": "expert-x", "version": "1.0.0", "base_models": [{"name": "t", "adapters": [{"type": "dora"}]}],
    }  # fmt: skip
    for manifest in (None, document):
        if manifest is not None:
            (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(AdapterError, match=r"^My adapter/adapter_config.json: layer_replication"):
            tokens(folder, base, tmp_path / "cache")


@pytest.fixture(scope="module")
def thin(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `export --thin`: a package, and `base/` beside it."""
    place = tmp_path_factory.mktemp("thin") / "out"
    shutil.copytree(packages.base, place / "base")
    shutil.copy(golden("dora"), place)
    return place


def test_thin_package_finds_its_base(packages: Packages, thin: Path, tmp_path: Path) -> None:
    """The base that was exported with a thin package is beside it."""
    package = next(thin.glob("*.expert"))
    assert expected(packages) == tokens(package, None, tmp_path / "cache")


def test_thin_package_beside_another_base(packages: Packages, thin: Path, tmp_path: Path, base: Path) -> None:
    """A base whose digest does not fit is left alone; `models/` of the store comes next."""
    place = tmp_path / "place"
    (place / "base").mkdir(parents=True)
    package = Path(shutil.copy(next(thin.glob("*.expert")), place))
    other = packages.short
    with tarfile.open(other) as archive:
        for member in archive:
            if member.name.startswith("onnx/") and member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                (place / "base" / Path(member.name).name).write_bytes(stream.read())
    with pytest.raises(LoadError, match=r"neither in base/ beside it nor in the cache"):
        tokens(package, None, tmp_path / "cache")
    shutil.copytree(base, tmp_path / "cache" / "models" / "tiny")
    assert expected(packages) == tokens(package, None, tmp_path / "cache")


def test_a_changed_base_beside_a_package(thin: Path, tmp_path: Path) -> None:
    """A base beside a package is compared with its list before it is used."""
    place = Path(shutil.copytree(thin, tmp_path / "place"))
    with (place / "base" / "weights.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        tokens(next(place.glob("*.expert")), None, tmp_path / "cache")


def test_only_the_very_base_of_a_signed_package(
    packages: Packages, thin: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """With `require` a base beside a package is the one whose digest was signed, and not one that says it fits."""
    place = Path(shutil.copytree(thin, tmp_path / "place"))
    package = next(place.glob("*.expert"))
    assert 0 == invoke("keygen", "publisher.key").exit_code
    assert 0 == invoke("sign", package, "--key", "publisher.key", "--publisher", "me").exit_code
    trust = Trust("require", keys={"me": Path("publisher.pub").read_text().strip()})
    assert expected(packages) == tokens(package, None, tmp_path / "cache", trust=trust)
    shutil.rmtree(place / "base")
    bundle("int8", place / "base")
    with pytest.raises(LoadError, match="nor in the cache"):
        tokens(package, None, tmp_path / "other cache", trust=trust)
    with Expert.load(package, cache_dir=tmp_path / "other cache", threads=1) as expert:
        assert "int8" == expert.base.precision


def test_packed_folder_beside_its_base(
    packages: Packages, base: Path, folder: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """A packed folder that states its base's digest finds the base beside it; one that states a name does not."""
    shutil.copytree(base, "base")
    for option, found in (("base", True), ("tiny", False)):
        assert 0 == invoke("init", folder, *TOLD, "--base", option, "--force").exit_code
        assert 0 == invoke("pack", folder, "--output", "x.expert").exit_code
        if found:
            assert expected(packages) == tokens(Path("x.expert"), None, tmp_path / "cache")
        else:
            with pytest.raises(LoadError, match="none was found"):
                tokens(Path("x.expert"), None, tmp_path / "cache")


def test_a_folder_of_folders(base: Path, folder: Path) -> None:
    """A folder above adapters is refused with their names."""
    with pytest.raises(AdapterError, match="there is an adapter in My adapter"):
        tokens(folder.parent, base, folder.parent / "cache")


def test_a_folder_of_neither(tmp_path: Path) -> None:
    """A folder with neither manifest nor adapter is refused."""
    with pytest.raises(ManifestError, match=r"manifest.json"):
        tokens(tmp_path, None, tmp_path / "cache")
