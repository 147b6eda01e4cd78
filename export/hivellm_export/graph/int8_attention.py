"""Attention on keys and values in 8 bits, for the CPU.

`GroupQueryAttention` reads int8 caches with a scale per channel. For one token after a long context it takes half the
time of float caches. For a prompt it takes two and a half times as long. So every layer has an `If`: few tokens use
the operator; a prompt uses plain products, after its keys and values were rounded and stored in the cache. Both
branches read only the cache. So the result of a token does not depend on how the tokens before it were divided into
runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hivellm_export.graph.lowering import Array, Lowering
from hivellm_ort.contract import past_names
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["Int8CacheAttention"]

_TILE = 128  # the first tokens of a run, which need no scores for keys of later tokens
_ALL = np.iinfo(np.int64).max
_PROMPT = 8  # from this number of tokens in one row, products are faster
# Masked scores are this far below the score of the first token, which every token sees. e ** -70 adds nothing to a
# sum. It is not a denormal number, which CPUs compute slowly.
_FAR = 70


class Int8CacheAttention:
    """Lowers the attention of one graph with an int8 cache.

    Args:
        lowering: The lowering of the graph.
        scales: Scales of keys and values, float32 [kv_heads, head_dim] by graph input.
        windows: Every sliding window of the model; -1 for none.
    """

    def __init__(self, lowering: Lowering, scales: Mapping[str, Array], windows: Sequence[int]):
        self._lowering, self._scales = lowering, scales
        self._windows = tuple(dict.fromkeys(windows))
        numbers = lowering.config.architecture
        self._heads, self._width = numbers.num_key_value_heads, numbers.head_dim
        self._group = numbers.num_attention_heads // numbers.num_key_value_heads
        self._layer = 0
        self._shared: dict[str, ir.Value] = {}

    def lower(
        self, node: ir.Node, operands: Sequence[ir.Value], *, window: int, shape: ir.Value
    ) -> Sequence[ir.Value]:
        """Lower one `Attention`.

        Args:
            node: The placeholder.
            operands: q, k and v, each [T, …], or one value with the three side by side.
            window: Number of positions that a token attends to, itself included; -1 for all.
            shape: int64 [3], the shape of operands in three dimensions.

        Returns:
            The result as [T, H], and present key and value.
        """
        *_, input_ids, past_key, past_value, seqlens_k, total = node.inputs
        if not self._shared:
            self._share(input_ids, total)
        prefix = f"attention.{self._layer}"
        names = past_names(self._layer)
        self._layer += 1
        step = _Branch(f"{prefix}.step")
        queries = [step.op("Reshape", operand, shape) for operand in operands]
        caches = self._lowering.rotary_caches()
        scales = [self._constant(f"{name}.scale", self._scales[name].reshape(-1)) for name in names]
        attended, *present = step.op(
            "GroupQueryAttention",
            *(queries if len(queries) == 3 else (*queries, None, None)),
            *(past_key, past_value, seqlens_k, total, *caches, None, None, None, *scales),
            domain=DOMAIN_MS,
            outputs=3,
            num_heads=self._heads * self._group,
            kv_num_heads=self._heads,
            scale=node.attributes["scale"].as_float(),
            local_window_size=window,
            do_rotary=1,
            rotary_interleaved=0,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
        )
        width = node.attributes["width"].as_int()
        few = step.graph(step.op("Reshape", attended, self._shape(-1, width)), *present)
        many = self._prompt(f"{prefix}.prompt", node, operands, names, window)
        return self._if(few, many)

    def _prompt(
        self,
        prefix: str,
        node: ir.Node,
        operands: Sequence[ir.Value],
        names: tuple[str, str],
        window: int,
    ) -> ir.Graph:
        """Make the branch for many tokens of one row."""
        many, shared = _Branch(prefix), self._shared
        heads, group, width = self._heads, self._group, self._width
        past = node.inputs[-4:-2]
        if len(operands) == 1:
            sizes = self._shape(heads * group * width, heads * width, heads * width)
            operands = many.op("Split", *operands, sizes, outputs=3, axis=1)
        query, key = (
            many.op(
                "RotaryEmbedding",
                many.op("Unsqueeze", operand, self._shape(0)),
                shared["positions"],
                *self._lowering.rotary_caches(),
                domain=DOMAIN_MS,
                interleaved=0,
            )
            for operand in operands[:2]
        )
        present, tokens = [], []
        for name, fresh, cache in zip(names, (key, operands[2]), past, strict=True):
            # QuantizeLinear takes one scale, or scales along one axis. Here the scale is 1, after a division.
            finer = many.op("Div", fresh, self._constant(f"{name}.scale", self._scales[name].reshape(-1)))
            stored = many.op("QuantizeLinear", finer, shared["one"], shared["zero"])
            stored = many.op("Reshape", stored, self._shape(1, -1, heads, width))
            present.append(many.op("ScatterND", cache, shared["places"], stored))
            seen = many.op("Slice", present[-1], self._shape(0), shared["end.1"], self._shape(2))
            seen = many.op("DequantizeLinear", seen, shared["one"], shared["zero"])
            tokens.append(many.op("Reshape", seen, self._shape(heads, -1, width)))
        # Scales of keys multiply the queries, scales of values the result: these are smaller than keys and values.
        scale = node.attributes["scale"].as_float()
        by_group = self._shape(-1, heads, group, width)
        key_scale, value_scale = (
            self._constant(f"{name}.scale.by_head", self._scales[name][:, None]) for name in names
        )
        query = many.op("Mul", many.op("Reshape", query, by_group), key_scale)
        query = many.op("Reshape", query, self._shape(-1, heads, group * width))
        query = many.op("Transpose", query, perm=[1, 0, 2])
        parts = [self._tile(many, tile, query, *tokens, scale=scale, window=window) for tile in range(2)]
        mixed = many.op("Transpose", many.op("Concat", *parts, axis=1), perm=[1, 0, 2])
        mixed = many.op("Mul", many.op("Reshape", mixed, by_group), value_scale)
        return many.graph(many.op("Reshape", mixed, self._shape(-1, heads * group * width)), *present)

    def _tile(
        self,
        many: _Branch,
        tile: int,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        *,
        scale: float,
        window: int,
    ) -> ir.Value:
        """Attention of one tile of queries.

        Args:
            many: The branch.
            tile: 0 for the first `_TILE` tokens, which attend only to keys up to theirs; 1 for the others.
            query: [kv_heads, tokens, group * head_dim].
            key: [kv_heads, positions, head_dim].
            value: [kv_heads, positions, head_dim].
            scale: Factor of scores.
            window: Number of positions that a token attends to; -1 for all.
        """
        shared, axis = self._shared, self._shape(1)
        query = many.op("Slice", query, *self._rows(tile), axis)
        if tile == 0:
            key, value = (
                many.op("Slice", one, self._shape(0), shared["end.0"], axis) for one in (key, value)
            )
        query = many.op("Reshape", query, self._shape(self._heads, -1, self._width))
        scores = many.op("FusedMatMul", query, key, domain=DOMAIN_MS, transB=1, alpha=scale)
        scores = many.op("Reshape", scores, shared[f"by_token.{tile}"])
        masked = many.op("Add", scores, shared[f"mask.{tile}.{window}"])
        if window < 0:
            first = many.op("Slice", scores, self._shape(0), self._shape(1), self._shape(3))
            masked = many.op("Max", masked, many.op("Sub", first, shared["far"]))
        shares = many.op("Reshape", many.op("Softmax", masked, axis=-1), shared[f"by_head.{tile}"])
        result: ir.Value = many.op(
            "Reshape",
            many.op("MatMul", shares, value),
            self._shape(self._heads, -1, self._group * self._width),
        )
        return result

    def _rows(self, tile: int) -> tuple[ir.Value, ir.Value]:
        """First token of a tile within the run, and the one after its last."""
        return (self._shape(_TILE), self._shape(_ALL)) if tile else (self._shape(0), self._shape(_TILE))

    def _share(self, input_ids: ir.Value, total: ir.Value) -> None:
        """Compute once for all layers: whether the run is a prompt, and for a prompt its positions and masks."""
        op = self._lowering.op
        shared = self._shared
        shared["one"] = self._constant("cache.one", np.array(1, np.float32))
        shared["far"] = self._constant("cache.far", np.array(_FAR, np.float32))
        shared["zero"] = self._constant("cache.zero", np.array(0, np.int8))
        sizes = op("Shape", input_ids)
        count = op("Gather", sizes, self._number(1), axis=0)
        alone = op("Equal", op("Gather", sizes, self._number(0), axis=0), self._number(1))
        shared["prompt"] = op("And", alone, op("GreaterOrEqual", count, self._number(_PROMPT)))
        many = _Branch("prompt")
        end = many.op("Cast", total, to=ir.DataType.INT64)
        begin = many.op("Sub", end, count)
        positions = many.op("Range", begin, end, self._number(1))
        column = many.op("Unsqueeze", positions, self._shape(1))
        seen = many.op("Range", self._number(0), end, self._number(1))
        visible = many.op("LessOrEqual", seen, column)
        made = {"positions": many.op("Unsqueeze", positions, self._shape(0))}
        ahead = many.op("Min", many.op("Shape", positions), self._shape(_TILE))
        made["end.0"] = many.op("Add", begin, ahead)
        made["end.1"] = many.op("Unsqueeze", end, self._shape(0))
        for tile in range(2):
            last = made[f"end.{tile}"]
            made[f"by_token.{tile}"] = many.op(
                "Concat", self._shape(self._heads, -1, self._group), last, axis=0
            )
            made[f"by_head.{tile}"] = many.op("Concat", self._shape(self._heads, -1), last, axis=0)
        # (row, head, position) of each new key: [1, tokens, kv_heads, 3]
        grid = many.op("Concat", many.op("Shape", positions), self._shape(self._heads), axis=0)
        head = self._constant("cache.heads", np.arange(self._heads))
        triple = [
            many.op("Unsqueeze", many.op("Expand", part, grid), self._shape(2))
            for part in (self._number(0), head, column)
        ]
        made["places"] = many.op("Unsqueeze", many.op("Concat", *triple, axis=2), self._shape(0))
        far, near = (self._constant(f"mask.{value:.0f}", np.array(value, np.float32)) for value in (-1e9, 0))
        for window in self._windows:
            within = visible
            if window > 0:
                first = many.op("Sub", column, self._number(window))
                within = many.op("And", visible, many.op("Greater", seen, first))
            masked = many.op("Unsqueeze", many.op("Where", within, near, far), self._shape(1))
            for tile in range(2):
                mask = many.op("Slice", masked, *self._rows(tile), self._shape(0))
                mask = many.op("Slice", mask, self._shape(0), made[f"end.{tile}"], self._shape(2))
                made[f"mask.{tile}.{window}"] = mask
        few = _Branch("step")
        nothing = {
            kind: few.op("Constant", value=ir.tensor(np.zeros(0, kind))) for kind in (np.int64, np.float32)
        }
        kinds = [np.float32 if name.startswith("mask") else np.int64 for name in made]
        others = few.graph(*(few.op("Identity", nothing[kind]) for kind in kinds))
        for name, value in zip(made, self._if(others, many.graph(*made.values())), strict=True):
            shared[name] = value

    def _if(self, few: ir.Graph, many: ir.Graph) -> Sequence[ir.Value]:
        outputs: Sequence[ir.Value] = self._lowering.op(
            "If",
            self._shared["prompt"],
            outputs=len(few.outputs),
            then_branch=many,
            else_branch=few,
        )
        return outputs

    def _constant(self, name: str, values: np.ndarray) -> ir.Value:
        """Add a small tensor, stored in the graph file."""
        return self._lowering.initializer(ir.tensor(values, name=name))

    def _shape(self, *sizes: int) -> ir.Value:
        return self._lowering.constant(sizes)

    def _number(self, value: int) -> ir.Value:
        return self._constant(f"number.{value}", np.array(value, np.int64))


class _Branch:
    """The nodes of one branch of an `If`. Names of values are unique in the whole graph."""

    def __init__(self, prefix: str):
        self._prefix = prefix
        self._nodes: list[ir.Node] = []

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add a node; returns its output, or a list if there are several."""
        name = f"{self._prefix}.{op_type}.{len(self._nodes)}"
        values = [ir.Value(name=f"{name}.{i}") for i in range(outputs)]
        self._nodes.append(
            ir.node(op_type, list(inputs), domain=domain, attributes=attributes, outputs=values, name=name)
        )
        return values[0] if outputs == 1 else values

    def graph(self, *outputs: ir.Value) -> ir.Graph:
        """The branch as a graph with these outputs."""
        return ir.Graph([], list(outputs), nodes=self._nodes, name=self._prefix)
