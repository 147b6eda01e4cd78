"""DirectML's last ONNX Runtime, 1.24.4, and the one of this environment: the same packages, the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("HIVELLM_OLD_ONNXRUNTIME") != "1" or find_spec("ensurepip") is None,
    reason="set HIVELLM_OLD_ONNXRUNTIME=1 to install ONNX Runtime 1.24.4 with pip, and compare with it",
)

ROOT = Path(__file__).parents[2]
OLD = "1.24.4"
# Activations that are rounded to 8 bits turn the last digit of a sum, which kernels of two versions need not share,
# into a difference of logits like that between int8 and fp32 itself. Only near ties fall the other way.
NEAR_TIE = 0.3

SHOP = (
    "CREATE TABLE users (id INT, name TEXT, registered DATE);\n"
    "CREATE TABLE orders (id INT, user_id INT, total NUMERIC);"
)
PROMPTS = {
    "expert-sql": [
        ("List all users who registered after 2024-01-01", SHOP),
        ("Count all orders of each user", SHOP),
        ("The three largest orders with the names of their users", SHOP),
    ],
    "expert-elastic": [
        ("Write a mapping for articles with a title and a date", None),
        ("Search articles whose title contains onnx", None),
        ("Count documents by author", None),
    ],
    "expert-json": [
        ("Fix this invalid JSON:\n{'a': 1, 'b': [1, 2,], 'name': 'x',}", None),
        ('Fix this invalid JSON:\n{"id": 7, "tags": ["a" "b"]', None),
        ('Fix this invalid JSON:\n{user: {name: "Ann", age: 30,}}', None),
    ],
    "tiny": [("select the users", None), ("a b a b a b", None), ("{'a': 1,}", SHOP)],
}

ANSWER = """
import json, sys
import onnxruntime
from hivellm_ort import Expert

answers = {}
for name, (package, base, prompts) in json.load(open(sys.argv[1], encoding="utf-8")).items():
    with Expert.load(package, base=base, trust="off", threads=2, device="cpu", prefix_cache_bytes=0) as expert:
        for lookup in (False, True):
            for prompt, schema in prompts:
                result = expert.generate(
                    prompt, schema=schema, temperature=0, max_tokens=48, prompt_lookup=lookup, logprobs=2
                )
                gaps = [token.top[0][1] - token.top[1][1] for token in result.logprobs]
                answers[f"{name}, lookup {lookup}: {prompt}"] = [list(result.tokens), gaps]
json.dump({"version": onnxruntime.__version__, "answers": answers}, sys.stdout)
"""


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the older ONNX Runtime, and without PyTorch."""
    folder = tmp_path_factory.mktemp("old") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [python, "-m", "pip", "install", "--quiet", ROOT, f"onnxruntime=={OLD}"]
    subprocess.run(command, check=True, cwd=folder)
    return python


@pytest.fixture(scope="module")
def packages(exported: Path, base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Package, base and prompts by name: the real experts in fp32 and int8, and a tiny one for two targets."""
    from support import tiny

    from hivellm_export.pipeline import export

    work = tmp_path_factory.mktemp("packages")
    folders = [ROOT / "models" / name for name in PROMPTS if name != "tiny"]
    export(base_file, folders, work / "int8", precision="int8", thin=True)
    found: dict[str, Any] = {}
    for precision, folder in (("fp32", exported), ("int8", work / "int8")):
        for package in sorted(folder.glob("*.expert")):
            prompts = PROMPTS[package.name.split("-smollm2")[0]]
            found[f"{precision} {package.name}"] = (str(package), str(folder / "base"), prompts)
    model = tiny.save_model(work / "model", "llama", max_position_embeddings=2048)
    adapter = tiny.with_manifest(tiny.save_adapter(work / "adapter", model, tiny.adapter_config("dora")))
    for target in ("cpu", "portable"):
        report = export(model, [adapter], work / target, target=target, precision="fp32")
        package = work / target / report.packages[0].file
        found[f"fp32 {target} tiny"] = (str(package), None, PROMPTS["tiny"])
    return found


def answers(python: str | Path, packages: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a Python answers, with the two best tokens' gap at every position."""
    (folder / "packages.json").write_text(json.dumps(packages), encoding="utf-8")
    environment = {**os.environ, "HIVELLM_HOME": str(folder / "home")}
    done = subprocess.run(
        [python, "-c", ANSWER, folder / "packages.json"],
        check=False, capture_output=True, text=True, cwd=folder, env=environment,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


def test_the_older_runtime_gives_the_same_tokens(
    old_python: Path, packages: dict[str, Any], tmp_path: Path
) -> None:
    """In fp32 every token is the same, with and without prompt lookup; in int8 up to a near tie."""
    new, old = (answers(python, packages, tmp_path) for python in (sys.executable, old_python))
    assert OLD == old["version"] != new["version"]
    assert len(packages) * 6 == len(old["answers"])
    ties = []
    for name, (expected, gaps) in new["answers"].items():
        actual, other_gaps = old["answers"][name]
        if expected == actual:
            continue
        first = next(i for i, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1])
        ties.append((name, first, min(gaps[first], other_gaps[first])))
    assert [] == [tie for tie in ties if not tie[0].startswith("int8") or tie[2] >= NEAR_TIE]
