"""Base folders in the words of transformers 5, and exported bundles against the model that transformers 4 loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.rows import begun

from hivellm_export.pipeline import export
from hivellm_ort.engine.session import Engine

TOLERANCE = 1e-4
PROMPT = [1, 17, 250, 33, 90, 4, 120, 77, 200, 61, 12, 5]


def edit(path: Path, *drop: str, **fields: Any) -> None:
    """Remove and set fields of a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in document.items() if name not in drop}
    path.write_text(json.dumps({**kept, **fields}), encoding="utf-8")


def as_five_writes(folder: Path, rope: dict[str, Any] | None = None) -> Path:
    """Rewrite `config.json` as transformers 5.24 has it; `rope` is `rope_parameters`, else made of what is there."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = {"rope_type": "default", **(config.get("rope_scaling") or {}), "rope_theta": config["rope_theta"]}
    edit(
        folder / "config.json",
        "rope_theta",
        "rope_scaling",
        "torch_dtype",
        rope_parameters=rope or found,
        dtype="float32",
        transformers_version="5.24.0",
        pad_token_id=None,
    )
    return folder


def assert_same_answers(folder: Path, reference: torch.nn.Module, work: Path, *, tokens: int = 48) -> None:
    """The bundle of `folder` in fp32 has the reference's logits, prompt and greedy answer, `tokens` in all."""
    export(folder, [], work / "bundle", precision="fp32")
    row = begun(Engine(work / "bundle"), None, tokens)
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([PROMPT]), do_sample=False, max_length=tokens, eos_token_id=None, pad_token_id=0
        )[0].tolist()
        logits = reference(torch.tensor([expected])).logits[0].numpy()
    actual, differences, pending = list(PROMPT), [], list(PROMPT)
    while len(actual) < tokens:
        own = row.forward(pending).copy()
        differences.append(float(np.abs(logits[len(actual) - 1] - own).max()))
        pending = [int(own.argmax())]
        actual += pending
    assert expected == actual
    assert max(differences) < TOLERANCE, differences
