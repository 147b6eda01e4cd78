"""Two tiny experts that say what they are for; without the export extra these tests are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for _name in ("torch", "transformers", "peft", "optimum", "onnx_ir"):
    pytest.importorskip(_name, reason="needs the export extra")

_ROOT = Path(__file__).parents[2]
for _folder in ("tests/export", "examples", "examples/service"):
    sys.path.insert(0, str(_ROOT / _folder))

import tiny  # noqa: E402
from example_packages import Examples  # noqa: E402
from exporting import edit_json, edit_tensors  # noqa: E402

from hivellm_export.pipeline import export  # noqa: E402

_KEYWORDS = {"sql": ["sql", "orders", "count all"], "json": ["json", "invalid json"]}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """The packages, exported once."""
    work = tmp_path_factory.mktemp("examples")
    model = tiny.save_model(work / "tiny", "llama", max_position_embeddings=2048)
    # <|im_end|> is never the most likely token: answers are as long as a test wants them.
    edit_tensors(model / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"][2].fill(0))
    folders = []
    for seed, (name, keywords) in enumerate(_KEYWORDS.items(), start=1):
        folder = tiny.save_adapter(work / name, model, tiny.adapter_config("lora"), seed=seed)
        tiny.with_manifest(folder, f"expert-{name}")
        edit_json(folder / "manifest.json", routing={"keywords": keywords})
        folders.append(folder)
    report = export(model, folders, work / "out", precision="fp32")
    sql, json = (work / "out" / package.file for package in report.packages)
    return Examples(
        folder=_ROOT / "examples", home=work / "home", model=model, adapter=folders[0], sql=sql, json=json
    )


@pytest.fixture
def examples(exported: Examples, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """The packages, and an environment in which the examples unpack them to one place."""
    monkeypatch.setenv("HIVELLM_HOME", str(exported.home))
    for name in ("HIVELLM_EXPERTS", "HIVELLM_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    return exported
