"""What the lowerings for all targets share: walking a trace, and the operators that every runtime has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.shaping import FLOAT_TYPES, dimension, site_shapes
from hivellm_export.trace import DOMAIN
from hivellm_export.weights import Matrix, WeightWriter
from hivellm_ort.contract import DecoderConfig, GraphConfig, Site
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["Lowering", "attribute_text"]

Array = NDArray[np.float32]


class Lowering:
    """Replaces the placeholders of a trace by operators; a subclass per target adds norms and attention.

    Args:
        graph: of a copy of the trace; it is changed.
        weights: where the weights go.
        config: sites, numbers and form of the bundle; its files are not known yet.
        adapters: whether the graph takes adapter weights at its sites.
        rotary: cosine and sine caches, each float32 [positions, head_dim / 2].
        cache_scales: of keys and values in 8 bits, float32 [kv_heads, head_dim] by input; else empty.
    """

    accuracy_level = 4

    def __init__(
        self,
        graph: ir.Graph,
        weights: WeightWriter,
        config: DecoderConfig,
        *,
        adapters: bool,
        rotary: tuple[Array, Array],
        cache_scales: Mapping[str, Array],
    ):
        self.graph, self.weights, self.config, self.adapters = graph, weights, config, adapters
        self.sites = {site.name: site for site in config.sites}
        self.rotary, self.cache_scales = rotary, cache_scales
        self.dtype = FLOAT_TYPES[config.graph.activation_dtype]
        self.at: ir.Node  # new nodes go before this one

    @property
    def form(self) -> GraphConfig:
        """How the graph is to be run."""
        return self.config.graph

    @property
    def positions(self) -> ir.Value:
        """The input `position_ids`, of targets that have it."""
        return next(value for value in self.graph.inputs if value.name == "position_ids")

    def run(self) -> None:
        """Lower every placeholder, then drop what nothing uses."""
        self.begin()
        self._siblings = _siblings(self.graph)
        self._activations: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
        for node in tuple(self.graph):
            if node.domain != DOMAIN:
                continue
            self.at = node
            outputs = getattr(self, f"_{node.op_type}")(node)
            for old, new in zip(node.outputs, outputs, strict=True):
                new.name, new.dtype = old.name, old.dtype
                if new.shape is None:
                    new.shape = old.shape
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
        self._remove_unused()
        for i, node in enumerate(self.graph):
            node.name = f"{node.op_type}.{i}"

    @property
    def tokens(self) -> int | str:
        """T, the rows of hidden states."""
        return "sequence_length" if dimension(self.config, "batch_size") == 1 else "tokens"

    def begin(self) -> None:
        """Make the trace's inputs and values those of the target."""

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        width: int | str | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node; its output, or all of them where there are several.

        With `width` the output is [tokens, width]. ONNX Runtime makes up a name for every size that it cannot infer,
        as after a product with a vector per adapter, and loading takes seconds where it has hundreds of them.
        """
        node = ir.node(op_type, list(inputs), domain=domain, attributes=attributes, num_outputs=outputs)
        if width is not None:
            node.outputs[0].type = ir.TensorType(self.dtype)
            node.outputs[0].shape = ir.Shape((self.tokens, width))
        self.graph.insert_before(self.at, node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The tensor as a value of the graph, which has it once."""
        assert tensor.name
        if tensor.name not in self.graph.initializers:
            value = ir.Value(
                name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def constant(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        name = "constant." + "_".join(map(str, values))
        return self.initializer(ir.tensor(np.array(values, dtype=np.int64), name=name))

    def input(self, name: str, shape: tuple[int | str, ...]) -> ir.Value:
        """A new graph input of the adapters' float type."""
        dtype = FLOAT_TYPES[self.form.adapter_dtype]
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def vector(self, name: str) -> ir.Value:
        """A weight of one dimension, as it is."""
        return self.initializer(self.weights.vector(name))

    def rotary_caches(self) -> list[ir.Value]:
        """Cosines and sines, each [positions, head_dim / 2]."""
        return [
            self.initializer(self.weights.vector(f"rotary.{name}", partial(np.asarray, cache)))
            for name, cache in zip(("cos", "sin"), self.rotary, strict=True)
        ]

    def _Embedding(self, node: ir.Node) -> tuple[ir.Value, ...]:
        matrix = self.weights.embedding()
        table = self.initializer(matrix.weight)
        if not matrix.bits:
            return (self.op("Gather", table, node.inputs[0], axis=0),)
        assert matrix.scales is not None
        return (
            self.op(
                "GatherBlockQuantized",
                table,
                node.inputs[0],
                self.initializer(matrix.scales),
                domain=DOMAIN_MS,
                bits=matrix.bits,
                block_size=matrix.block,
                gather_axis=0,
                quantize_axis=1,
            ),
        )

    def _Linear(self, node: ir.Node) -> tuple[ir.Value, ...]:
        x, name = node.inputs[0], attribute_text(node, "site")
        modules = tuple(attribute_text(node, "modules").split(","))
        columns, width = node.attributes["in_features"].as_int(), sum(node.attributes["sizes"].as_ints())
        y = self._matmul(x, self.weights.linear(modules, self._siblings[name]), columns, width)
        site = self.sites.get(name)
        if name == "lm_head" and self.dtype != ir.DataType.FLOAT:
            return (self.op("Cast", y, to=ir.DataType.FLOAT),)
        if site is None:
            return (y,)
        bias = self.initializer(self.weights.bias(site)) if site.bias else None
        if self.adapters:
            return (self._adapted(x, y, site, bias),)
        return (y if bias is None else self.op("Add", y, bias),)

    def _matmul(self, x: ir.Value, matrix: Matrix, columns: int, width: int) -> ir.Value:
        weight = self.initializer(matrix.weight)
        if matrix.smoothing is not None:
            return self._dynamic_matmul(x, matrix, columns, width)
        if matrix.bits:
            assert matrix.scales is not None
            zeros = None if matrix.zero_points is None else self.initializer(matrix.zero_points)
            return self.op(
                "MatMulNBits",
                *(x, weight, self.initializer(matrix.scales), *([zeros] if zeros is not None else [])),
                domain=DOMAIN_MS,
                K=columns,
                N=width,
                bits=matrix.bits,
                block_size=matrix.block,
                accuracy_level=self.accuracy_level,
            )
        if matrix.transposed:
            return self.op("MatMul", x, weight)
        return self.op("Gemm", x, weight, transB=1)

    def _dynamic_matmul(self, x: ir.Value, matrix: Matrix, columns: int, width: int) -> ir.Value:
        """8-bit activations, symmetric around 128 with one scale per token, times 8-bit weights.

        A token's result does not depend on what else is in the pass: sums of integers are exact.
        """
        assert matrix.smoothing is not None
        assert matrix.scales is not None
        step = self.initializer(ir.tensor(np.array(1 / 127, np.float32), name="activation.scale"))
        zero = self.initializer(ir.tensor(np.array(128, np.uint8), name="activation.zero_point"))
        key = x, self.initializer(matrix.smoothing)
        if key not in self._activations:  # gate and up have one input
            x = self.op("Mul", *key, width=columns)
            largest = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]), keepdims=1, width=1)
            x = self.op("QuantizeLinear", self.op("Div", x, largest, width=columns), step, zero)
            self._activations[key] = x, largest
        x, largest = self._activations[key]
        weight, scales = self.initializer(matrix.weight), self.initializer(matrix.scales)
        y = self.op("MatMulIntegerToFloat", x, weight, step, scales, zero, domain=DOMAIN_MS)
        return self.op("Mul", y, largest, width=width)

    def _adapted(self, x: ir.Value, y: ir.Value, site: Site, bias: ir.Value | None) -> ir.Value:
        inputs = {name: self.input(name, shape) for name, shape in site_shapes(self.config, site).items()}
        width, rank = site.out_features, inputs[site.lora_A].shape
        assert rank is not None
        low = self.op("MatMul", x, inputs[site.lora_A])
        low = self.op("Mul", low, inputs[site.gate], width=rank[1])
        y = self._added(low, inputs[site.lora_B], self.op("Mul", y, inputs[site.scale], width=width))
        if bias is not None:
            y = self.op("Add", y, self.op("Add", bias, inputs[site.bias_input]), width=width)
        return y

    def _added(self, low: ir.Value, lora_B: ir.Value, y: ir.Value) -> ir.Value:
        """`low lora_B + y`: Gemm adds while it multiplies, one node less than MatMul and Add."""
        return self.op("Gemm", low, lora_B, y)

    def _remove_unused(self) -> None:
        """Residual sums that a norm has taken over, what led only to them, and inputs that the target has not."""
        outputs = set(self.graph.outputs)
        for node in reversed(tuple(self.graph)):
            if not any(value.uses() or value in outputs for value in node.outputs):
                self.graph.remove(node, safe=True)
        for value in tuple(self.graph.inputs):
            if not value.uses():
                self.graph.inputs.remove(value)


def attribute_text(node: ir.Node, attribute: str) -> str:
    """A text attribute of a placeholder."""
    return node.attributes[attribute].as_string()


def _siblings(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """By site, the modules of all sites that have the same input."""
    sites: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if (node.domain, node.op_type) == (DOMAIN, "Linear"):
            sites.setdefault(node.inputs[0], []).append(node)
    return {
        attribute_text(node, "site"): tuple(
            module for one in nodes for module in attribute_text(one, "modules").split(",")
        )
        for nodes in sites.values()
        for node in nodes
    }
