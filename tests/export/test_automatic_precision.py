"""`--precision auto`: what is chosen for which model and CPU, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hivellm_export import pipeline
from hivellm_export.targets import plan_bundles
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import ExportError


@pytest.mark.parametrize(
    ("parameters", "flags", "expected", "because"),
    [
        (135_000_000, {"avx512_vnni": True}, "w8a8", "135 M parameters.*avx512_vnni"),
        (600_000_000, {"amx_int8": True, "avx512_vnni": True}, "w8a8", "amx_int8"),
        (600_000_000, {"i8mm": True}, "w8a8", "i8mm"),
        (600_000_000, {"avx2": True, "avx512_vnni": False}, "int8", "not known to multiply"),
        (600_000_000, {}, "int8", "not known to multiply"),
        (8_000_000_000, {"avx512_vnni": True}, "int4", "8000 M parameters"),
    ],
)
def test_choice(parameters: int, flags: dict[str, bool], expected: str, because: str) -> None:
    """Small models keep 8 bits; activations have them too where the CPU multiplies them."""
    (plan,) = plan_bundles(["cpu"], ["auto"])
    settled = plan.settled(parameters, flags)
    assert expected == settled.precision.name
    assert re.search(because, settled.reason)


def test_other_targets_have_their_default() -> None:
    """What is measured is the CPU; for other targets nothing is guessed, and a named precision stays."""
    plans = plan_bundles(["cuda", "portable", "cpu"], ["cuda=auto", "cpu=fp32"])
    settled = [plan.settled(135_000_000, {"amx_int8": True}) for plan in plans]
    assert ["fp32", "fp16", "fp32"] == [plan.precision.name for plan in settled]
    assert ["", "the default of target cuda", ""] == [plan.reason for plan in settled]


def test_one_precision_for_several_targets() -> None:
    """It is asked for by target, as any other."""
    with pytest.raises(ExportError, match="--precision cpu=auto"):
        plan_bundles(["cpu", "dml"], ["auto"])


def test_export(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle has the precision that was chosen, and the report says why."""
    monkeypatch.setattr(pipeline, "cpu_flags", lambda: {"avx_vnni": True})
    report = pipeline.export(model_folder("llama"), [], tmp_path / "out", precision="auto")
    assert "w8a8" == DecoderConfig.from_file(tmp_path / "out" / DECODER_JSON).precision
    assert "avx_vnni" in report.bundles[0].reason
