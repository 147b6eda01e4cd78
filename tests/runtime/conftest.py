"""Tiny packages, exported once a session; without the export extra these tests are skipped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for _name in ("torch", "transformers", "peft", "optimum", "onnx_ir"):
    pytest.importorskip(_name, reason="needs the export extra")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))

import tiny  # noqa: E402
from exporting import edit_tensors  # noqa: E402
from running import CONTEXT, PROMPT, Packages  # noqa: E402

from hivellm_export.pipeline import export  # noqa: E402
from hivellm_ort import Expert  # noqa: E402


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Experts on two tiny bases, as packages; see `Packages`."""
    work = tmp_path_factory.mktemp("runtime")
    cache = work / "cache"
    model = tiny.save_model(work / "tiny", "llama", max_position_embeddings=CONTEXT)
    # <|im_end|> is never the most likely token: answers are as long as a test wants them.
    edit_tensors(model / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"][2].fill(0))
    folders = []
    for number, kind in enumerate(("lora", "dora", "ia3")):
        config = tiny.adapter_config(kind)
        folder = tiny.save_adapter(work / kind, model, config, seed=number + 1)
        folders.append(tiny.with_manifest(folder, f"expert-{kind}"))
    report = export(model, folders, work / "out", precision="fp32")
    lora, dora, ia3 = (work / "out" / package.file for package in report.packages)
    with Expert.load(lora, cache_dir=cache, threads=1) as expert:
        eos = expert.generate(PROMPT, max_tokens=40).tokens[20]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, eos]}))
    ending = export(model, folders[:1], work / "ending", precision="fp32")
    merged = export(model, folders[1:2], work / "merged", precision="fp32", merged=True)
    small = tiny.save_model(work / "small", "qwen3", seed=7)
    other = tiny.with_manifest(
        tiny.save_adapter(work / "other", small, tiny.adapter_config("lora")), "expert-other"
    )
    short = export(small, [other], work / "short", precision="fp32")
    return Packages(
        cache=cache,
        model=model,
        lora=lora,
        dora=dora,
        ia3=ia3,
        lora_folder=folders[0],
        ending=work / "ending" / ending.packages[0].file,
        eos=eos,
        merged=work / "merged" / merged.packages[0].file,
        short=work / "short" / short.packages[0].file,
    )


@pytest.fixture
def lora(packages: Packages) -> Iterator[Expert]:
    """The LoRA expert, loaded."""
    with packages.load("lora") as expert:
        yield expert


@pytest.fixture
def dora(packages: Packages) -> Iterator[Expert]:
    """The DoRA expert of the same base, loaded."""
    with packages.load("dora") as expert:
        yield expert


@pytest.fixture
def short(packages: Packages) -> Iterator[Expert]:
    """The expert whose base has a context of 128 tokens, loaded."""
    with packages.load("short") as expert:
        yield expert
