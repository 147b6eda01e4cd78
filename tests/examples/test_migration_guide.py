"""What `docs/migration.md` says, against transformers and PEFT."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.extras import requires_export

requires_export()

import peft
import torch
from click.testing import CliRunner
from example_packages import Examples
from support import tiny
from transformers import AutoTokenizer, GenerationConfig

from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExpertManifest, GenerateOptions
from hivellm_ort.cli.main import main

GUIDE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
MESSAGES = [{"role": "system", "content": "b"}, {"role": "user", "content": "select the users"}]


def block(language: str, index: int = 0) -> str:
    """A block of code of the guide."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[index]


@pytest.fixture(scope="module")
def model(exported: Examples) -> Any:
    """The adapter on its base, in PEFT."""
    return peft.PeftModel.from_pretrained(tiny.load_model(exported.model), exported.adapter).eval()


def test_both_sides_print_the_same(
    examples: Examples, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The two pieces of code, on the same files, print one text."""
    export(examples.model, [], tmp_path / "base", precision="fp32")
    paths = {
        "smollm2": tmp_path / "base",
        "SmolLM2-135M-Instruct": examples.model,
        "expert-sql": examples.adapter,
    }
    printed = []
    for index in range(2):
        code = block("python", index)
        for written, path in paths.items():
            code = code.replace(f'"{written}"', repr(str(path)))
        exec(compile(code, "migration.md", "exec"), {"messages": MESSAGES})
        printed.append(capsys.readouterr().out)
    assert len(printed[0]) > 20
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"suppress_tokens": [70, 80, 90]}, {"logit_bias": dict.fromkeys((70, 80, 90), -np.inf)}),
        ({"sequence_bias": {(65,): 3.0}}, {"logit_bias": {65: 3.0}}),
        ({"logits_processor": [lambda _, scores: -scores]}, {"processors": [lambda _, logits: -logits]}),
        ({"do_sample": True, "top_k": 1}, {"temperature": 1, "top_k": 1}),
        ({"prompt_lookup_num_tokens": 3}, {"prompt_lookup": True}),
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_arguments_mean_the_same(
    theirs: dict[str, Any], ours: dict[str, Any], model: Any, examples: Examples
) -> None:
    """With the arguments of one row of the table both generate the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(examples.model)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0, **theirs}
    with torch.no_grad():
        output = model.generate(inputs, **options)
    with Expert.load(examples.sql, trust="off", threads=1) as expert:
        result = expert.generate(messages=MESSAGES, **{"max_tokens": 24, "temperature": 0, **ours})
    assert output[0, inputs.shape[1] :].tolist() == list(result.tokens)


def test_the_manifest_is_enough(examples: Examples, tmp_path: Path) -> None:
    """The smallest manifest is read without a warning, and lacks nothing."""
    (tmp_path / "manifest.json").write_text(block("json"), encoding="utf-8")
    manifest = ExpertManifest.from_file(tmp_path / "manifest.json")
    assert ("expert-sql", ()) == (manifest.name, tuple(manifest.warnings))
    own = json.loads((examples.adapter / "manifest.json").read_text("utf-8"))
    assert json.loads(block("json")).keys() == own.keys() - {"routing"}


def test_the_short_way_makes_a_package(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the short way are ones that work."""
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "expert-sql"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((examples.adapter / name).read_bytes())
    shutil.copytree(examples.model, "SmolLM2-135M-Instruct")
    for line in [*block("sh").splitlines(), *block("sh", 1).splitlines()]:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert 0 == result.exit_code, result.output
    (package,) = tmp_path.glob("*.expert")
    with Expert.load(package, base="smollm2", trust="off", threads=1) as expert:
        assert "expert-sql" == expert.name


def test_every_name_of_transformers_is_there() -> None:
    """The guide names each field of a GenerationConfig."""
    fields = GenerationConfig().to_dict().keys() - {"transformers_version"}
    assert set() == {name for name in fields if not name.startswith("_")} - set(re.findall(r"\w+", GUIDE))


def test_every_option_that_is_named_exists() -> None:
    """What the table of arguments gives as ours is an option or a method."""
    table = GUIDE.split("## Arguments of generate")[1].split("Penalties that")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row[1])}
    methods = {"generate_batch", "generate_stream", "cancel"}
    assert methods <= named
    assert set() == named - methods - GenerateOptions.__annotations__.keys()
