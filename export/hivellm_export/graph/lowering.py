"""What the lowerings for all targets share: the walk over a trace, embeddings and linear layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.graph.placeholders import DOMAIN, linear_nodes, modules_of, sizes_of, text_of
from hivellm_export.graph.shapes import dimension, site_shapes
from hivellm_export.weights.writer import FLOAT_TYPES, Matrix, WeightWriter
from hivellm_ort.contract import DecoderConfig, GraphConfig, Site
from hivellm_ort.errors import ExportError
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["Array", "Handler", "Lowering"]

Array = NDArray[np.float32]
Handler = Callable[[ir.Node], tuple[ir.Value, ...]]
"""Takes a placeholder, adds the operators that replace it, and returns a value for each of its outputs."""


class Lowering(ABC):
    """Replaces the placeholders of a trace by operators. Each target has a subclass, with norms and attention.

    Args:
        graph: A copy of the trace, changed in place.
        weights: Where the weights are written.
        config: Sites, architecture and form of the bundle. Its list of files is still empty.
        adapters: Whether the graph has inputs for adapter weights at its sites.
        rotary: Cosine and sine tables, each float32 [positions, head_dim / 2].
        cache_scales: For keys and values in 8 bits: scales float32 [kv_heads, head_dim] by graph input. Else empty.
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
        self.at: ir.Node  # new nodes are inserted before this one

    @property
    def form(self) -> GraphConfig:
        """How a runtime must run the graph."""
        return self.config.graph

    @property
    def positions(self) -> ir.Value:
        """The input `position_ids`, for targets that have it."""
        return next(value for value in self.graph.inputs if value.name == "position_ids")

    def handlers(self) -> dict[str, Handler]:
        """By placeholder, what lowers it."""
        return {
            "Embedding": self.embedding,
            "Linear": self.linear,
            "RMSNorm": self.rms_norm,
            "HeadRMSNorm": self.head_rms_norm,
            "Attention": self.attention,
        }

    @abstractmethod
    def rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower `RMSNorm`: one value, [T, H]."""

    @abstractmethod
    def head_rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower `HeadRMSNorm`: one value, [T, width]."""

    @abstractmethod
    def attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower `Attention`: the result [T, width], and the present key and value."""

    def run(self) -> None:
        """Lower every placeholder, then remove the nodes and inputs that nothing uses.

        Raises:
            ExportError: The trace has a placeholder without a handler.
        """
        self.begin()
        self._siblings = _siblings(self.graph)
        self._activations: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
        handlers = self.handlers()
        for node in tuple(self.graph):
            if node.domain != DOMAIN:
                continue
            handler = handlers.get(node.op_type)
            if handler is None:
                raise ExportError(
                    f"{type(self).__name__} has no handler for the operator {DOMAIN}::{node.op_type} of the trace, "
                    f"only for {', '.join(handlers)}"
                )
            self.at = node
            outputs = handler(node)
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
        """T, the number of rows of hidden states, or its name in the graph."""
        return "sequence_length" if dimension(self.config, "batch_size") == 1 else "tokens"

    @abstractmethod
    def begin(self) -> None:
        """Adapt inputs and values of the trace to the target, before any placeholder is lowered."""

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        width: int | str | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node to the graph.

        Args:
            op_type: The operator.
            inputs: Its inputs; None for one that is left out.
            domain: The operator's domain.
            outputs: How many outputs it has.
            width: The output's second dimension: the shape [tokens, width] is then stated. ONNX Runtime invents a
                name for every dimension that it cannot infer, for example after a product with a vector per adapter.
                With hundreds of such names loading takes seconds.
            attributes: Its attributes.

        Returns:
            The output, or a sequence of them if there are several.
        """
        node = ir.node(op_type, list(inputs), domain=domain, attributes=attributes, num_outputs=outputs)
        if width is not None:
            node.outputs[0].type = ir.TensorType(self.dtype)
            node.outputs[0].shape = ir.Shape((self.tokens, width))
        self.graph.insert_before(self.at, node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add a tensor to the graph, once for each name."""
        assert tensor.name
        if tensor.name not in self.graph.initializers:
            value = ir.Value(
                name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def constant(self, values: Sequence[int]) -> ir.Value:
        """Add an int64 vector."""
        name = "constant." + "_".join(map(str, values))
        return self.initializer(ir.tensor(np.array(values, dtype=np.int64), name=name))

    def input(self, name: str, shape: tuple[int | str, ...]) -> ir.Value:
        """Add a graph input with the float type of adapters."""
        dtype = FLOAT_TYPES[self.form.adapter_dtype]
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def vector(self, name: str) -> ir.Value:
        """Add a weight of one dimension, unchanged."""
        return self.initializer(self.weights.vector(name))

    def rotary_caches(self) -> list[ir.Value]:
        """Add the cosines and the sines, each [positions, head_dim / 2]."""
        return [
            self.initializer(self.weights.vector(f"rotary.{name}", partial(np.asarray, cache)))
            for name, cache in zip(("cos", "sin"), self.rotary, strict=True)
        ]

    def embedding(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower `Embedding`: one value, [B, S, H]."""
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

    def linear(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower `Linear`, with the adapter of its site: one value, [T, N]."""
        x, name = node.inputs[0], text_of(node, "site")
        columns, width = node.attributes["in_features"].as_int(), sum(sizes_of(node))
        y = self._matmul(x, self.weights.linear(modules_of(node), self._siblings[name]), columns, width)
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
        """Multiply 8-bit activations by 8-bit weights; activations have one scale per token and the zero point 128.

        Sums of integers are exact, so the result of a token does not depend on other tokens of the pass.
        """
        assert matrix.smoothing is not None
        assert matrix.scales is not None
        step = self.initializer(ir.tensor(np.array(1 / 127, np.float32), name="activation.scale"))
        zero = self.initializer(ir.tensor(np.array(128, np.uint8), name="activation.zero_point"))
        key = x, self.initializer(matrix.smoothing)
        if key not in self._activations:  # gate_proj and up_proj have the same input
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
        """`low lora_B + y`. Gemm adds while it multiplies: one node instead of MatMul and Add."""
        return self.op("Gemm", low, lora_B, y)

    def _remove_unused(self) -> None:
        """Remove nodes that nothing uses, such as residual sums inside fused norms, and unused inputs."""
        outputs = set(self.graph.outputs)
        for node in reversed(tuple(self.graph)):
            if not any(value.uses() or value in outputs for value in node.outputs):
                self.graph.remove(node, safe=True)
        for value in tuple(self.graph.inputs):
            if not value.uses():
                self.graph.inputs.remove(value)


def _siblings(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """For each site, the modules of all sites with the same input."""
    sites: dict[ir.Value, list[ir.Node]] = {}
    for node in linear_nodes(graph):
        sites.setdefault(node.inputs[0], []).append(node)
    return {
        text_of(node, "site"): tuple(module for one in nodes for module in modules_of(one))
        for nodes in sites.values()
        for node in nodes
    }
