"""The command `demo`, on a tiny base and three tiny experts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import tiny

from hivellm_export.demo import PROMPTS
from hivellm_ort import Expert
from hivellm_ort.cli.main import main

Demo = Callable[..., Result]


@pytest.fixture
def demo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Demo:
    """Run the command; the base is a tiny model in place of the download."""
    # The tiny tokenizer makes 238 tokens of the longest prompt.
    base = tiny.save_model(tmp_path / "base", "qwen2", max_position_embeddings=512)
    for prompt, kind in zip(PROMPTS, ("lora", "dora", "rslora"), strict=True):
        folder = tmp_path / "models" / prompt.expert
        tiny.save_adapter(folder, base, tiny.adapter_config(kind))
        tiny.with_manifest(folder, name=prompt.expert)
    monkeypatch.setattr("hivellm_export.fetch.fetch_base", lambda folder: base)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def run(*options: str) -> Result:
        return CliRunner().invoke(
            main, ["demo", "--models", str(tmp_path / "models"), "--precision", "fp32", *options]
        )

    return run


def test_answers_and_packages(demo: Demo, tmp_path: Path) -> None:
    """With --output the packages are kept, and each gives the answer that the command has shown."""
    output = tmp_path / "packages"
    result = demo("--output", str(output), "--json")
    assert 0 == result.exit_code, result.output
    report = json.loads(result.stdout)
    assert ("base", "fp32") == (report["base"], report["precision"])
    assert 0 < report["export_seconds"]
    assert [prompt.text for prompt in PROMPTS] == [answer["prompt"] for answer in report["answers"]]
    for prompt, answer in zip(PROMPTS, report["answers"], strict=True):
        (package,) = output.glob(f"{prompt.expert}-*.expert")
        with Expert.load(package, trust="off") as expert:
            assert expert.generate(prompt.text, **prompt.options).text == answer["text"]
    assert 3 == len(list(output.iterdir()))


def test_text(demo: Demo, tmp_path: Path) -> None:
    """Without --json each expert has its prompt, answer and speed; without --output nothing is left."""
    result = demo()
    assert 0 == result.exit_code, result.output
    lines = result.stdout.splitlines()
    assert [prompt.expert for prompt in PROMPTS] == [line for line in lines if line.startswith("expert-")]
    assert [f"  prompt  {text}" for text in (prompt.text.splitlines()[0] for prompt in PROMPTS)] == [
        line for line in lines if line.startswith("  prompt  ")
    ]
    assert 3 == sum(line.startswith("  answer  ") for line in lines)
    assert 3 == sum(" tokens/s, swapped in " in line for line in lines)
    assert "fetching the base model\nexporting 3 experts in fp32\n" in result.stderr
    assert [] == list((tmp_path / "temporary").iterdir())


def test_expert_is_missing(demo: Demo, tmp_path: Path) -> None:
    """Outside of a clone the error names the folder and the option; nothing is downloaded."""
    shutil.rmtree(tmp_path / "models" / "expert-elastic")
    result = demo()
    assert 2 == result.exit_code
    folder = tmp_path / "models" / "expert-elastic"
    assert (
        f"error: {folder} does not exist: run this in a clone of the repository, or pass --models\n"
        == result.stderr
    )


@pytest.mark.parametrize("command", ["demo", "export"])
def test_library_is_missing(
    command: str, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the library and the extra to install."""
    monkeypatch.setattr(
        "hivellm_export.libraries.find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    options = ["--base", str(tmp_path / "base"), "--output", str(tmp_path / "out")]
    result = demo() if command == "demo" else CliRunner().invoke(main, ["export", *options])
    assert (2, "error: the exporter needs gguf: pip install 'hivellm-ort[export]'\n") == (
        result.exit_code,
        result.stderr,
    )
