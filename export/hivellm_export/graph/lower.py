"""Lower a trace of placeholder operators to the operators of one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.graph.contrib_lowering import CpuLowering, CudaLowering, DmlLowering
from hivellm_export.graph.lowering import Lowering
from hivellm_export.graph.placeholders import linear_nodes, modules_of, sizes_of, text_of
from hivellm_export.graph.portable_lowering import PortableLowering
from hivellm_export.weights.writer import WeightWriter
from hivellm_ort.contract import GREEDY_OUTPUT, LOGITS, DecoderConfig, Part, Site

__all__ = ["lower", "sites_of"]

_LOWERINGS: dict[str, type[Lowering]] = {
    "cpu": CpuLowering,
    "cuda": CudaLowering,
    "dml": DmlLowering,
    "portable": PortableLowering,
}


def sites_of(trace: ir.Model, has_bias: Callable[[str], bool]) -> tuple[Site, ...]:
    """The adapter sites of a trace: every `Linear` except the LM head."""
    sites = []
    for node in linear_nodes(trace.graph):
        name = text_of(node, "site")
        if name == "lm_head":
            continue
        parts = tuple(Part(m, n, has_bias(m)) for m, n in zip(modules_of(node), sizes_of(node), strict=True))
        sites.append(Site(name, node.attributes["in_features"].as_int(), parts))
    return tuple(sites)


def lower(
    trace: ir.Model,
    weights: WeightWriter,
    config: DecoderConfig,
    *,
    adapters: bool,
    rotary: tuple[NDArray[np.float32], NDArray[np.float32]],
    cache_scales: Mapping[str, NDArray[np.float32]],
    name: str,
) -> ir.Model:
    """Lower a copy of `trace` for the target of `config`.

    Args:
        trace: From `trace_decoder`, and `split_qkv` for targets that need it.
        weights: Where the weights are written. The two graphs of a bundle share it.
        config: Sites, architecture and form of the bundle. Its list of files is still empty.
        adapters: Whether the graph has inputs for adapter weights at its sites.
        rotary: Cosine and sine tables, each float32 [max_position_embeddings, head_dim / 2].
        cache_scales: For keys and values in 8 bits: scales float32 [kv_heads, head_dim] by graph input. Else empty.
        name: Name of the graph.

    Returns:
        The ONNX model. Its weights are external tensors in the file of `weights`.

    Raises:
        ExportError: The target cannot express a part of the model.
    """
    model = trace.clone()
    rows = config.graph.shapes.get("max_length", (None,))[0]
    caches = rotary[0][:rows], rotary[1][:rows]
    lowering = _LOWERINGS[config.target]
    lowering(model.graph, weights, config, adapters=adapters, rotary=caches, cache_scales=cache_scales).run()
    if config.graph.greedy_output:
        _add_greedy_output(model.graph)
    model.graph.name = name
    model.producer_name, model.producer_version = "hivellm_export", None
    model.ir_version = 10
    model.opset_imports.clear()
    model.opset_imports.update(config.graph.opsets)
    return model


def _add_greedy_output(graph: ir.Graph) -> None:
    """Add an output with the most likely token of each row; of equal ones the first, as numpy's argmax."""
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    node = ir.node("ArgMax", [logits], {"axis": -1, "keepdims": 0, "select_last_index": 0}, name="ArgMax.0")
    (token_ids,) = node.outputs
    assert logits.shape is not None
    token_ids.name, token_ids.dtype = GREEDY_OUTPUT, ir.DataType.INT64
    token_ids.shape = ir.Shape(logits.shape[:1])
    graph.append(node)
    graph.outputs.append(token_ids)
