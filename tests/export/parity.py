"""Logits of an exported expert against PEFT's, position by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
from support import tiny
from support.rows import begun

from hivellm_export.pipeline import export
from hivellm_ort import Expert
from hivellm_ort.engine.session import Engine

PROMPT = [1, 17, 250, 33, 90, 4, 120, 77, 200, 61, 12, 5, 256, 31, 8, 99]
TOLERANCE = 1e-4


def peft_logits(base: Path, adapter: Path, token_ids: list[int] = PROMPT) -> np.ndarray:
    """Logits float32 [len(token_ids), vocab] of PEFT in float32, not merged."""
    model = peft.PeftModel.from_pretrained(tiny.load_model(base), adapter).eval()
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def base_logits(base: Path, token_ids: list[int] = PROMPT) -> np.ndarray:
    """Logits float32 [len(token_ids), vocab] of the model without adapter."""
    with torch.no_grad():
        return tiny.load_model(base)(torch.tensor([token_ids])).logits[0].numpy()


def engine_of(expert: Expert) -> Engine:
    """The engine that an expert shares with others of its base."""
    return expert._base.engine


def expert_logits(expert: Expert, token_ids: list[int] = PROMPT) -> np.ndarray:
    """The same from the runtime: half of the tokens as a prompt, the others one by one; nan where not computed."""
    row = begun(expert._base.engine, expert.adapter, len(token_ids))
    logits = np.full((len(token_ids), expert.base.architecture.vocab_size), np.nan, np.float32)
    begin = len(token_ids) // 2
    logits[begin - 1] = row.forward(token_ids[:begin])
    for i in range(begin, len(token_ids)):
        logits[i] = row.forward(token_ids[i : i + 1])
    return logits


def assert_same_as_peft(base: Path, adapter: Path, work: Path, *, merged: bool = False) -> Expert:
    """Export `adapter`, compare with PEFT, and check that the adapter matters at all; returns the closed expert."""
    report = export(base, [adapter], work / "out", precision="fp32", merged=merged)
    expected = peft_logits(base, adapter)
    with Expert.load(work / "out" / report.packages[0].file, cache_dir=work / "cache", threads=1) as expert:
        actual = expert_logits(expert)
    computed = ~np.isnan(actual[:, 0])
    difference = np.abs(expected - actual)[computed].max()
    assert difference < TOLERANCE, difference
    effect = np.abs(expected - base_logits(base))[computed].max()
    assert effect > 100 * TOLERANCE, "the adapter changes nothing, so nothing was compared"
    return expert
