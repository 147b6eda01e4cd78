"""Graphs of other targets, changed so far that the CPU provider has kernels for them, and no further.

Inputs and outputs keep their names, shapes and types. The norms of query and key come out of GroupQueryAttention, and
what is bfloat16 is computed in float32 from the same rounded weights, with casts behind inputs and before outputs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir
from support.graphs import in_float32, norms_outside

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH

_BFLOAT16, _FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def runnable(folder: Path) -> Path:
    """A bundle that the CPU provider runs: the one given, or a copy with other graphs."""
    models = {name: ir.load(folder / name) for name in (BASE_GRAPH, ADAPTER_GRAPH)}
    changed = [change(model) for model in models.values() for change in (norms_outside, _casts_around)]
    if not any(changed):
        return folder
    copy = folder.with_name(f"{folder.name}-runnable")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.onnx", "weights.bin"))
    for name, model in models.items():
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        ir.save(model, copy / name)
    return copy


def _casts_around(model: ir.Model) -> bool:
    """Compute in float32 between inputs and outputs of bfloat16; whether there are any."""
    graph = model.graph
    inputs = [value for value in graph.inputs if value.dtype == _BFLOAT16]
    outputs = {i: value for i, value in enumerate(graph.outputs) if value.dtype == _BFLOAT16}
    if not inputs:
        return False
    in_float32(model)
    first = next(iter(graph))
    for value in inputs:
        value.dtype = _BFLOAT16
        cast = ir.node("Cast", [value], {"to": _FLOAT})
        cast.outputs[0].dtype = _FLOAT
        for use in tuple(value.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, cast.outputs[0])
        graph.insert_before(first, cast)
    for i, value in outputs.items():
        cast = ir.node("Cast", [value], {"to": _BFLOAT16})
        cast.outputs[0].name, value.name = value.name, f"{value.name}.float32"
        cast.outputs[0].dtype, cast.outputs[0].shape = _BFLOAT16, value.shape
        graph.append(cast)
        graph.outputs[i] = cast.outputs[0]
    return True
