"""Logits of exported tiny models against transformers and PEFT in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from support import tiny
from support.rows import begun

from hivellm_export.pipeline import export
from hivellm_ort import Expert
from hivellm_ort.engine.decoder import Decoder

TOLERANCE = 1e-4
PROMPT = [1, 17, 250, 33, 90, 4, 120, 77, 200, 61, 12, 5]
STEPS = 16


def reference_logits(model: torch.nn.Module, token_ids: list[int]) -> np.ndarray:
    """Logits [len(token_ids), vocab] of one uncached forward pass."""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def assert_same_logits(row: Decoder, model: torch.nn.Module) -> None:
    """Prefill and 16 greedy decode steps agree with the reference within the tolerance."""
    token_ids, pending = list(PROMPT), list(PROMPT)
    differences = []
    for _ in range(STEPS + 1):
        logits = row.forward(pending).copy()
        expected = reference_logits(model, token_ids)[-1]
        differences.append(float(np.abs(expected - logits).max()))
        pending = [int(expected.argmax())]
        token_ids += pending
    assert max(differences) < TOLERANCE, differences


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_base_model_matches_transformers(
    architecture: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The graph without adapters computes what transformers computes."""
    folder = model_folder(architecture)
    export(folder, [], tmp_path / "bundle", precision="fp32")
    from hivellm_ort.engine.session import Engine

    engine = Engine(tmp_path / "bundle")
    assert_same_logits(begun(engine, None, 64), tiny.load_model(folder))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_expert_matches_peft(
    architecture: str, kind: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every adapter kind on every architecture computes what PEFT computes: swapped, or merged for LoKr."""
    folder = model_folder(architecture)
    adapter = tiny.save_adapter(tmp_path / "expert", folder, tiny.adapter_config(kind))
    tiny.with_manifest(adapter)
    merged = kind == "lokr"
    report = export(folder, [adapter], tmp_path / "out", precision="fp32", merged=merged)
    reference = peft.PeftModel.from_pretrained(tiny.load_model(folder), adapter).eval()
    with Expert.load(tmp_path / "out" / report.packages[0].file, cache_dir=tmp_path / "cache") as expert:
        assert merged == (expert.adapter is None)
        assert_same_logits(begun(expert._base.engine, expert.adapter, 64), reference)
