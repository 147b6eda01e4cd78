"""Rotary embeddings of base folders, as transformers 4 and 5 write them: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reading import as_five_writes, assert_same_answers
from support import tiny
from support.exporting import copied

from hivellm_export.base_model import load_base
from hivellm_export.huggingface.rope import read_rope
from hivellm_ort.errors import ExportError, UnsupportedArchitectureError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 4.0],
    "long_factor": [2.0] * 8,
    "factor": 1.0,
    "attention_factor": 1.2,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 1.3},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-betas": {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 0.9},
    "yarn-mscale": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False},
    "yarn-own-length": {"rope_type": "yarn", "factor": 2},
    "longrope": LONG,
}
THETA = 50_000.0
SIZES = {"head_dim": 16, "positions": 128, "where": "config.json"}


def old_folder(folder: Path, architecture: str, rope: dict[str, Any]) -> Path:
    """A tiny model whose configuration transformers 4 wrote."""
    return tiny.save_model(folder, architecture, rope_theta=THETA, rope_scaling=rope, head_dim=16)


@pytest.mark.parametrize("name", ROPES)
def test_answers_of_both_spellings(name: str, tmp_path: Path) -> None:
    """Every kind of rotary embedding gives transformers' logits and greedy answer, from either version's file."""
    rope = ROPES[name]
    old = old_folder(tmp_path / "old", "llama", rope)
    reference = tiny.load_model(old)
    new = as_five_writes(copied(old, tmp_path / "new"), {**rope, "rope_theta": THETA})
    assert "rope_theta" not in json.loads((new / "config.json").read_text())
    assert_same_answers(new, reference, tmp_path)
    for folder in (old, new):
        expected = reference.model.rotary_emb(torch.zeros(1), torch.arange(128)[None])
        actual = load_base(folder).rotary()
        assert all(
            np.array_equal(one[0, :, :8].numpy(), two) for one, two in zip(expected, actual, strict=True)
        )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_theta_of_five(architecture: str, tmp_path: Path) -> None:
    """Every family's `rope_theta` is found inside `rope_parameters`; it was 10,000 for all of them once."""
    old = tiny.save_model(tmp_path / "old", architecture, rope_theta=1e6)
    new = as_five_writes(copied(old, tmp_path / "new"))
    assert_same_answers(new, tiny.load_model(old), tmp_path)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_whole_context_of_a_rope_that_goes_by_length(name: str, tmp_path: Path) -> None:
    """Up to the last position transformers itself never leaves the frequencies that the graph has."""
    folder = old_folder(tmp_path / "base", "qwen2", ROPES[name])
    assert_same_answers(folder, tiny.load_model(folder), tmp_path, tokens=128)


@pytest.mark.parametrize("outer", [True, False])
def test_spellings_that_agree(outer: bool) -> None:
    """`type` or `rope_type`, theta inside or outside, one object or one for each layer type: all the same."""
    expected = {"rope_theta": THETA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    rope: dict[str, Any] = {"factor": 2.0}
    for kind in ({"type": "linear"}, {"rope_type": "linear"}, {"type": "linear", "rope_type": "linear"}):
        inner = {**rope, **kind} if outer else {**rope, **kind, "rope_theta": THETA}
        document = {"rope_theta": THETA} if outer else {}
        by_layer = {"full_attention": inner, "sliding_attention": dict(inner)}
        for form in ({"rope_scaling": inner}, {"rope_parameters": inner}, {"rope_parameters": by_layer}):
            assert expected == read_rope({**document, **form}, **SIZES)
        assert expected == read_rope({**document, "rope_scaling": inner, "rope_parameters": inner}, **SIZES)


def test_nothing_said_is_the_default() -> None:
    """Without any field, and with null or empty ones, theta is 10,000 as in every family's class."""
    expected = {"rope_theta": 10_000.0, "rope_scaling": None}
    for document in ({}, {"rope_scaling": None}, {"rope_parameters": {}, "partial_rotary_factor": 1.0}):
        assert expected == read_rope(document, **SIZES)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 3, 3]}}, "rope_scaling type 'mrope'"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6}}, "rope_parameters type"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_scaling type ['linear']"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta"),
        ({"rope_scaling": LLAMA3, "rope_parameters": YARN}, "rope_parameters and rope_scaling"),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": LLAMA3}}, "by layer type"),
        ({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
        ({"rope_scaling": {**YARN, "extrapolation_factor": 1.0}}, "rope_scaling.extrapolation_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000}}, "rope_scaling.alpha"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 64}, "original_max_position_embeddings"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32},
            "original_max_position_embeddings 32 is beside rope_scaling",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}},
            "original_max_position_embeddings 64",
        ),
        ({"rope_scaling": LONG, "original_max_position_embeddings": 64}, "'longrope' is not supported with"),
        ({"rope_scaling": {**LONG, "attention_factor": None, "factor": 4.0}}, "rope_scaling.factor 4.0"),
    ],
)  # fmt: skip
def test_refused_by_name(document: dict[str, Any], named: str) -> None:
    """What no table of positions can hold, what is not known and what contradicts itself is named."""
    with pytest.raises(UnsupportedArchitectureError) as error:
        read_rope(document, **SIZES)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_theta": "1e6"}, "rope_theta must be a number above 0, it is '1e6'"),
        ({"rope_theta": True}, "rope_theta must be a number"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "rope_scaling.factor must be a number"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "rope_scaling.truncate must be true or false"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32.5}},
            "original_max_position_embeddings must be a whole number",
        ),
        ({"rope_scaling": {**LONG, "short_factor": [1.0]}}, "rope_scaling.short_factor must be a list of 8"),
        ({"rope_scaling": {**LONG, "long_factor": [0.0] * 8}}, "rope_scaling.long_factor must be a number"),
    ],
)
def test_malformed(document: dict[str, Any], named: str) -> None:
    """A value that is no number where one belongs is an error of that field."""
    with pytest.raises(ExportError) as error:
        read_rope(document, **SIZES)
    assert named in str(error.value)
