"""Placeholders of a trace and their handlers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from support.exporting import Refusal

from hivellm_export import pipeline
from hivellm_export.graph.placeholders import DOMAIN


@pytest.mark.parametrize(
    ("target", "lowering"),
    [
        ("cpu", "CpuLowering"),
        ("cuda", "CudaLowering"),
        ("dml", "DmlLowering"),
        ("portable", "PortableLowering"),
    ],
)
def test_operator_without_handler(
    target: str,
    lowering: str,
    model_folder: Callable[[str], Path],
    refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator of the trace that a lowering has no handler for is refused by its name."""
    trace_decoder = pipeline.trace_decoder

    def with_gate(model: Any) -> ir.Model:
        trace = trace_decoder(model)
        trace.graph.append(ir.node("Gate", [trace.graph.inputs[0]], domain=DOMAIN))
        return trace

    monkeypatch.setattr(pipeline, "trace_decoder", with_gate)
    kind, message = refused(model_folder("llama"), options=("--target", target, "--precision", "auto"))
    assert "ExportError" == kind
    assert f"{lowering} has no handler for the operator hivellm::Gate of the trace" in message
