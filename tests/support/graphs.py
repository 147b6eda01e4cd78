"""Run the graphs of any target on the CPU provider, as their `decoder.json` says and by nothing else.

The CPU provider computes float16 operators itself or through casts that ONNX Runtime inserts, so graphs of float16
run as they are, with one exception: the norms of query and key inside GroupQueryAttention. In a copy of the graph
they are put before it (`norms_outside`). For bfloat16 it has no kernels: a copy computes in float32 with the same
rounded weights (`in_float32`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.contract import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    DECODER_JSON,
    DecoderConfig,
    past_names,
    present_names,
)
from hivellm_ort.engine.adapters import BoundAdapter

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class GraphRun:
    """One row on one graph of a bundle; `copies` is a folder for graphs that are changed to be run here."""

    def __init__(self, folder: Path, copies: Path, adapter: PreparedAdapter | None = None):
        self.config = DecoderConfig.from_file(folder / DECODER_JSON)
        self.form, self.length = self.config.graph, 0
        name = BASE_GRAPH if adapter is None else ADAPTER_GRAPH
        path, dtype = _runnable(folder / name, copies, self.form.activation_dtype)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        bound = {} if adapter is None else BoundAdapter(adapter, self.config).inputs
        self.adapter = {key: value.numpy().astype(dtype) for key, value in bound.items()}
        numbers = self.config.architecture
        (capacity,) = self.form.shapes.get("max_length", (64,))
        shape = (1, numbers.num_key_value_heads, capacity, numbers.head_dim)
        layers = range(numbers.num_hidden_layers)
        self.buckets = self.form.shapes.get("sequence_length")
        self.past = {name: np.zeros(shape, dtype) for layer in layers for name in past_names(layer)}
        self.present = [name for layer in layers for name in present_names(layer)]

    def forward(self, token_ids: list[int]) -> np.ndarray:
        """Append tokens, in as few runs as the graph allows; logits float32 [vocab] after the last."""
        while token_ids:
            count, width = self._next_run(len(token_ids))
            logits = self._run(token_ids[:count], width)
            token_ids = token_ids[count:]
            self.length += count
        return logits[-1]

    def _next_run(self, wanted: int) -> tuple[int, int]:
        """Return the tokens of the next run, and the number of tokens in its shape."""
        if self.length and not self.form.multi_token_append:
            wanted = 1
        capacity = next(iter(self.past.values())).shape[2]
        fitting = [size for size in self.buckets or (wanted,) if self.length + size <= capacity]
        width = min((size for size in fitting if size >= wanted), default=max(fitting))
        return min(wanted, width), width

    def _run(self, token_ids: list[int], width: int) -> np.ndarray:
        count, begin = len(token_ids), self.length
        values: dict[str, Any] = {
            "input_ids": np.array([token_ids + [0] * (width - count)], np.int64),
            "position_ids": np.arange(begin, begin + width, dtype=np.int64)[None],
            "seqlens_k": np.array([begin + count - 1], np.int32),
            "total_sequence_length": np.array(begin + width, np.int32),
            "logits_rows": np.array([count - 1], np.int64),
        }
        values["total_sequence_length"] = values["total_sequence_length"].reshape(
            self.form.inputs.get("total_sequence_length", ())
        )
        feeds = {name: values[name] for name in self.form.inputs} | self.adapter | self.past
        if self.form.cache_update == "in_place":
            return self._run_in_place(feeds)
        logits, *present = self.session.run(["logits", *self.present], feeds)
        for past, new in zip(self.past.values(), present, strict=True):
            assert (*past.shape[:2], width, past.shape[3]) == new.shape
            past[:, :, begin : begin + count] = new[:, :, :count]
        return logits

    def _run_in_place(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        binding = self.session.io_binding()
        bound = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        for name, past in zip(self.present, self.past, strict=True):
            binding.bind_ortvalue_output(name, bound[past])
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()


def _runnable(path: Path, copies: Path, dtype: str) -> tuple[str, Any]:
    """Return a graph that the CPU provider can run, and its float type in numpy."""
    model, half = ir.load(path), np.float16 if dtype == "float16" else np.float32
    changed = norms_outside(model)
    if dtype == "bfloat16":
        in_float32(model)
        changed = True
    if not changed:
        return str(path), half
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    copies.mkdir(parents=True, exist_ok=True)
    ir.save(model, copies / path.name)
    return str(copies / path.name), half


def norms_outside(model: ir.Model) -> bool:
    """Move the norms of query and key out of GroupQueryAttention, and return whether there were any."""
    found = False
    for node in tuple(model.graph):
        if node.op_type != "GroupQueryAttention" or len(node.inputs) < 16:
            continue
        found = True
        epsilon = node.attributes["qk_norm_epsilon"].as_float()
        for index, weight in ((0, node.inputs[14]), (1, node.inputs[15])):
            flat, (size,) = node.inputs[index], weight.shape
            heads = ir.tensor(np.array([0, 0, -1, size], np.int64))
            joined = ir.tensor(np.array([0, 0, -1], np.int64))
            constants = [ir.node("Constant", [], {"value": shape}) for shape in (heads, joined)]
            split = ir.node("Reshape", [flat, constants[0].outputs[0]])
            norm = ir.node(
                "SimplifiedLayerNormalization",
                [split.outputs[0], weight],
                {"axis": -1, "epsilon": epsilon, "stash_type": 1},
            )
            whole = ir.node("Reshape", [norm.outputs[0], constants[1].outputs[0]])
            model.graph.insert_before(node, [*constants, split, norm, whole])
            node.replace_input_with(index, whole.outputs[0])
        for index in (14, 15):
            node.replace_input_with(index, None)
        node.attributes.pop("qk_norm_epsilon")
    return found


def in_float32(model: ir.Model) -> None:
    """Change a graph in a half type to float32, with the same values."""
    for node in model.graph:
        tensor = node.attributes["value"].as_tensor() if node.op_type == "Constant" else None
        if tensor is not None and tensor.dtype in _HALF:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype(np.float32)))
    for value in model.graph.initializers.values():
        if value.dtype in _HALF:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = ir.DataType.FLOAT
    for value in (*model.graph.inputs, *model.graph.outputs, *(v for n in model.graph for v in n.outputs)):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
