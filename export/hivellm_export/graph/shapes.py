"""Types and shapes of a graph's inputs and outputs, as `decoder.json` states them."""

from __future__ import annotations

import onnx_ir as ir

from hivellm_export.weights.writer import FLOAT_TYPES
from hivellm_ort.contract import DecoderConfig, Site, past_names, present_names

__all__ = [
    "CACHE_TYPES",
    "apply_form",
    "cache_shape",
    "dimension",
    "present_shape",
    "site_shapes",
]

CACHE_TYPES = {**FLOAT_TYPES, "int8": ir.DataType.INT8}


def dimension(config: DecoderConfig, name: str) -> int | str:
    """A dimension as the graph states it: a number if the form allows only one value, else its name."""
    values = config.graph.shapes.get(name, ())
    return values[0] if len(values) == 1 else name


def cache_shape(config: DecoderConfig, length: str = "max_length") -> tuple[int | str, ...]:
    """Shape of keys or values with `length` positions."""
    numbers = config.architecture
    batch, size = dimension(config, "batch_size"), dimension(config, length)
    return (batch, numbers.num_key_value_heads, size, numbers.head_dim)


def present_shape(config: DecoderConfig) -> tuple[int | str, ...]:
    """Shape of a present key or value, an output of a run."""
    new_only = config.graph.cache_update == "new_tokens"
    return cache_shape(config, "sequence_length" if new_only else "max_length")


def site_shapes(config: DecoderConfig, site: Site) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the adapter inputs of a site, by name."""
    rank, width = f"{site.name}.rank", site.out_features
    # Rows of a batch may have different adapters, so gates and vectors have a row for each token.
    one = dimension(config, "batch_size") == 1
    rows, gates = (1, 1) if one else ("gate_rows", f"{site.name}.gate")
    shapes: dict[str, tuple[int | str, ...]] = {
        site.lora_A: (site.in_features, rank),
        site.lora_B: (rank, width),
        site.gate: (rows, gates),
        site.scale: (rows, width),
        site.bias_input: (rows, width),
    }
    return {name: shapes[name] for name in site.inputs}


def apply_form(graph: ir.Graph, config: DecoderConfig) -> None:
    """Set types and shapes of a trace, which is float32 with free shapes, to those of its target.

    Inner values lose their shapes, which only hold for the trace. Type objects are replaced and not changed: copies
    of a trace share them.
    """
    form, layers = config.graph, range(config.architecture.num_hidden_layers)
    activations, cache = FLOAT_TYPES[form.activation_dtype], CACHE_TYPES[form.cache_dtype]
    for node in graph:
        for value in node.outputs:
            value.shape = None
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(activations)
        constant = node.attributes.get("value") if node.op_type == "Constant" else None
        if constant is not None and constant.as_tensor().dtype == ir.DataType.FLOAT:
            array = constant.as_tensor().numpy().astype(activations.numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    if "position_ids" in form.inputs:
        positions = ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.insert(1, positions)
    past = {name for layer in layers for name in past_names(layer)}
    for value in graph.inputs:
        if value.name in past:
            value.type, value.shape = ir.TensorType(cache), ir.Shape(cache_shape(config))
        elif value.name in form.inputs:
            value.shape = ir.Shape(form.inputs[value.name])
    present = {name for layer in layers for name in present_names(layer)}
    for value in graph.outputs:
        if value.name in present:
            value.type, value.shape = ir.TensorType(cache), ir.Shape(present_shape(config))
        else:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape((dimension(config, "rows"), config.architecture.vocab_size))
