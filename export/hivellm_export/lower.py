"""Lower a trace of placeholder operators to the operators of one execution provider.

`cpu`: float32 activations, GroupQueryAttention with the rotary embedding inside, SkipSimplifiedLayerNormalization
for residual and norm together, MatMulNBits with accuracy level 4 (int8 activations) for quantised weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.quantize import BLOCK
from hivellm_export.trace import DOMAIN
from hivellm_export.weights import Matrix, WeightWriter
from hivellm_ort.contract import Part, Site

__all__ = ["TARGETS", "lower", "sites_of"]

TARGETS = ("cpu",)
_MS = "com.microsoft"


def sites_of(trace: ir.Model, has_bias: Callable[[str], bool]) -> tuple[Site, ...]:
    """The adapter sites of a trace: every linear placeholder but the LM head."""
    sites = []
    for node in trace.graph:
        if (node.domain, node.op_type) != (DOMAIN, "Linear") or _text(node, "site") == "lm_head":
            continue
        modules = _text(node, "modules").split(",")
        sizes = node.attributes["sizes"].as_ints()
        parts = tuple(Part(m, n, has_bias(m)) for m, n in zip(modules, sizes, strict=True))
        sites.append(Site(_text(node, "site"), node.attributes["in_features"].as_int(), parts))
    return tuple(sites)


def lower(
    trace: ir.Model,
    weights: WeightWriter,
    *,
    sites: Sequence[Site],
    adapters: bool,
    rotary: tuple[NDArray[np.float32], NDArray[np.float32]],
    name: str,
) -> ir.Model:
    """Lower `trace` for the CPU provider; the trace itself is left as it is.

    Args:
        trace: from `trace_decoder`.
        weights: where the weights go; two graphs of one bundle share it.
        sites: from `sites_of`.
        adapters: whether the graph takes adapter weights at its sites.
        rotary: cosine and sine caches, each float32 [max_position_embeddings, head_dim / 2].
        name: the graph's name.
    """
    model = trace.clone()
    _Lowering(model.graph, weights, {site.name: site for site in sites}, adapters, rotary).run()
    model.graph.name = name
    model.producer_name, model.producer_version = "hivellm_export", None
    model.ir_version = 10
    model.opset_imports[_MS] = 1
    model.opset_imports.pop(DOMAIN, None)
    return model


class _Lowering:
    def __init__(
        self,
        graph: ir.Graph,
        weights: WeightWriter,
        sites: dict[str, Site],
        adapters: bool,
        rotary: tuple[NDArray[np.float32], NDArray[np.float32]],
    ):
        self.graph, self.weights, self.sites, self.adapters = graph, weights, sites, adapters
        self.rotary = rotary
        self.at: ir.Node  # new nodes go before this one
        self.rows: ir.Value | None = None

    def run(self) -> None:
        for node in tuple(self.graph):
            if node.domain != DOMAIN:
                continue
            self.at = node
            outputs = getattr(self, f"_{node.op_type}")(node)
            for old, new in zip(node.outputs, outputs, strict=True):
                new.name, new.shape, new.dtype = old.name, old.shape, old.dtype
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
        self._remove_unused()
        for i, node in enumerate(self.graph):
            node.name = f"{node.op_type}.{i}"

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        node = ir.node(op_type, list(inputs), domain=domain, attributes=attributes, num_outputs=outputs)
        self.graph.insert_before(self.at, node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        assert tensor.name
        if tensor.name not in self.graph.initializers:
            value = ir.Value(
                name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def constant(self, values: Sequence[int]) -> ir.Value:
        name = "constant." + "_".join(map(str, values))
        return self.initializer(ir.tensor(np.array(values, dtype=np.int64), name=name))

    def input(self, name: str, shape: tuple[str | int, ...]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.inputs.append(value)
        return value

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
                domain=_MS,
                bits=matrix.bits,
                block_size=BLOCK,
                gather_axis=0,
                quantize_axis=1,
            ),
        )

    def _RMSNorm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        weight = self.initializer(self.weights.vector(_text(node, "weight")))
        epsilon = node.attributes["epsilon"].as_float()
        x = node.inputs[0]
        add = x.producer()
        if add is None or add.op_type != "Add":
            return (
                self.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1),
            )
        # The residual sum is an output of the fused operator too: later layers read it from there.
        normed, _, _, total = self.op(
            "SkipSimplifiedLayerNormalization", *add.inputs, weight, domain=_MS, outputs=4, epsilon=epsilon
        )
        later = [use for use in x.uses() if use.node is not node]
        for use in later:
            use.node.replace_input_with(use.idx, total)
        total.name = x.name if later else ""
        return (normed,)

    def _HeadRMSNorm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        weight = self.initializer(self.weights.vector(_text(node, "weight")))
        epsilon = node.attributes["epsilon"].as_float()
        head_dim = node.attributes["head_dim"].as_int()
        width = node.attributes["width"].as_int()
        heads = self.op("Reshape", node.inputs[0], self.constant([-1, width // head_dim, head_dim]))
        normed = self.op(
            "SimplifiedLayerNormalization", heads, weight, axis=-1, epsilon=epsilon, stash_type=1
        )
        return (self.op("Reshape", normed, self.constant([-1, width])),)

    def _Attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        *qkv, input_ids, past_key, past_value, seqlens_k, total = node.inputs
        if self.rows is None:
            # [B, S, -1]: the operator wants its three dimensions back.
            sizes = self.op("Shape", input_ids)
            self.rows = self.op("Concat", sizes, self.constant([-1]), axis=0)
        queries = [self.op("Reshape", value, self.rows) for value in qkv]
        query, key, value = queries if len(queries) == 3 else (queries[0], None, None)
        cos, sin = (
            self.initializer(self.weights.vector(f"rotary.{name}", lambda cache=cache: cache))
            for name, cache in zip(("cos", "sin"), self.rotary, strict=True)
        )
        window = node.attributes["sliding_window"].as_int()
        attended, *present = self.op(
            "GroupQueryAttention",
            *(query, key, value, past_key, past_value, seqlens_k, total, cos, sin),
            domain=_MS,
            outputs=3,
            num_heads=node.attributes["num_heads"].as_int(),
            kv_num_heads=node.attributes["kv_num_heads"].as_int(),
            scale=node.attributes["scale"].as_float(),
            local_window_size=window or -1,
            do_rotary=1,
            rotary_interleaved=0,
        )
        width = node.attributes["width"].as_int()
        return self.op("Reshape", attended, self.constant([-1, width])), *present

    def _Linear(self, node: ir.Node) -> tuple[ir.Value, ...]:
        x, name = node.inputs[0], _text(node, "site")
        modules = tuple(_text(node, "modules").split(","))
        columns, width = node.attributes["in_features"].as_int(), sum(node.attributes["sizes"].as_ints())
        y = self._matmul(x, self.weights.linear(modules), columns, width)
        site = self.sites.get(name)
        if site is None:
            return (y,)
        bias = self.initializer(self.weights.bias(site)) if site.bias else None
        if self.adapters:
            return (self._adapted(x, y, site, bias),)
        return (y if bias is None else self.op("Add", y, bias),)

    def _matmul(self, x: ir.Value, matrix: Matrix, columns: int, width: int) -> ir.Value:
        weight = self.initializer(matrix.weight)
        if matrix.bits:
            assert matrix.scales is not None
            zeros = None if matrix.zero_points is None else self.initializer(matrix.zero_points)
            return self.op(
                "MatMulNBits",
                *(x, weight, self.initializer(matrix.scales), *([zeros] if zeros is not None else [])),
                domain=_MS,
                K=columns,
                N=width,
                bits=matrix.bits,
                block_size=BLOCK,
                accuracy_level=4,
            )
        if matrix.transposed:
            return self.op("MatMul", x, weight)
        return self.op("Gemm", x, weight, transB=1)

    def _adapted(self, x: ir.Value, y: ir.Value, site: Site, bias: ir.Value | None) -> ir.Value:
        rank, rows, width = f"{site.name}.rank", "gate_rows", site.out_features
        lora_A = self.input(site.lora_A, (site.in_features, rank))
        lora_B = self.input(site.lora_B, (rank, width))
        low = self.op("Mul", self.op("MatMul", x, lora_A), self.input(site.gate, (rows, f"{site.name}.gate")))
        # Gemm adds the scaled product while it multiplies: one node less than MatMul and Add.
        y = self.op("Gemm", low, lora_B, self.op("Mul", y, self.input(site.scale, (rows, width))))
        if bias is not None:
            y = self.op("Add", y, self.op("Add", bias, self.input(site.bias_input, (rows, width))))
        return y

    def _remove_unused(self) -> None:
        """Residual sums that a norm has taken over, and what led only to them."""
        outputs = set(self.graph.outputs)
        for node in reversed(tuple(self.graph)):
            if not any(value.uses() or value in outputs for value in node.outputs):
                self.graph.remove(node, safe=True)


def _text(node: ir.Node, attribute: str) -> str:
    return node.attributes[attribute].as_string()
