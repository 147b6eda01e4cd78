"""Lowering to standard ONNX operators, for CoreML and any other runtime.

The cache has a fixed length, and the graph only reads it. Keys and values of the new tokens are outputs, which the
runtime copies into its buffers. So the graph needs no scatter and copies no cache. Attention adds masks made from
`position_ids`: a token sees the cache before the first position of the run, and the tokens of the run up to itself.
Norms and masks are computed in float32, the rest in the type of the graph.

The operators are those of CoreML's ML programs, with their limits: no Where, no Gemm with a variable B, only constant
Slice and Split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hivellm_export.graph.lowering import Lowering
from hivellm_export.graph.placeholders import text_of
from hivellm_export.graph.shapes import apply_form

__all__ = ["PortableLowering"]

_FLOAT = ir.DataType.FLOAT
_HIDDEN = 1e4  # subtracted from scores of hidden positions: their softmax is 0, and it fits float16
_END = np.iinfo(np.int64).max


class PortableLowering(Lowering):
    """For any runtime. The trace has q, k and v split."""

    def begin(self) -> None:
        """Apply the types and shapes of the form."""
        apply_form(self.graph, self.config)
        (self._length,) = self.form.shapes["max_length"]
        self._positions: tuple[ir.Value, ir.Value, ir.Value, ir.Value] | None = None
        self._masks: dict[int, tuple[ir.Value, ir.Value]] = {}

    def rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to standard operators in float32, whatever the type of the graph."""
        return (self._normed(node.inputs[0], node),)

    def head_rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to the same operators on each head."""
        head_dim = node.attributes["head_dim"].as_int()
        width = node.attributes["width"].as_int()
        heads = self.op("Reshape", node.inputs[0], self.constant([-1, width // head_dim, head_dim]))
        return (self.op("Reshape", self._normed(heads, node), self.constant([-1, width])),)

    def _normed(self, x: ir.Value, node: ir.Node) -> ir.Value:
        weight = self.vector(text_of(node, "weight"))
        x = self._cast(x, _FLOAT)
        mean = self.op("ReduceMean", self.op("Pow", x, self._number(2.0)), self.constant([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self._number(node.attributes["epsilon"].as_float())))
        return self.op("Mul", self._cast(self.op("Div", x, root), self.dtype), weight)

    def attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to products, masks and a softmax. Present key and value hold only the new tokens."""
        query, key, value, _, past_key, past_value, _, _ = node.inputs
        numbers = self.config.architecture
        heads, kv_heads, size = (
            numbers.num_attention_heads,
            numbers.num_key_value_heads,
            numbers.head_dim,
        )
        scale = self._number(node.attributes["scale"].as_float(), self.dtype)
        query = self.op("Mul", self._rotated(query, heads), scale)
        key = self._rotated(key, kv_heads)
        # Heads that share a key: [kv_heads, group, S, head_dim] against [kv_heads, 1, head_dim, length].
        query = self._arranged(query, [-1, kv_heads, heads // kv_heads, size], [1, 2, 0, 3])
        past_keys = self._arranged(past_key, [kv_heads, 1, self._length, size], [0, 1, 3, 2])
        new_keys = self._arranged(key, [-1, kv_heads, 1, size], [1, 2, 3, 0])
        seen_past, seen_new = self._masks_for(node.attributes["sliding_window"].as_int())
        scores = self.op(
            "Concat",
            self.op("Add", self.op("MatMul", query, past_keys), seen_past),
            self.op("Add", self.op("MatMul", query, new_keys), seen_new),
            axis=-1,
        )
        shares = self.op("Softmax", scores, axis=-1)
        past_values = self.op("Reshape", past_value, self.constant([kv_heads, 1, self._length, size]))
        new_values = self._arranged(value, [-1, kv_heads, 1, size], [1, 2, 0, 3])
        attended = self.op(
            "Add",
            self.op("MatMul", self._slice(shares, 0, self._length), past_values),
            self.op("MatMul", self._slice(shares, self._length, _END), new_values),
        )
        attended = self.op("Transpose", attended, perm=[2, 0, 1, 3])
        return (
            self.op("Reshape", attended, self.constant([-1, heads * size])),
            self._arranged(key, [1, -1, kv_heads, size], [0, 2, 1, 3]),
            self._arranged(value, [1, -1, kv_heads, size], [0, 2, 1, 3]),
        )

    def _rotated(self, x: ir.Value, heads: int) -> ir.Value:
        """Apply the rotary embedding: [S, heads * head_dim] to [S, heads, head_dim]."""
        cos, sin, _, _ = self._at_positions()
        size = self.config.architecture.head_dim
        x = self.op("Reshape", x, self.constant([-1, heads, size]))
        low, high = self.op("Split", x, self.constant([size // 2, size // 2]), outputs=2, axis=-1)
        return self.op(
            "Concat",
            self.op("Sub", self.op("Mul", low, cos), self.op("Mul", high, sin)),
            self.op("Add", self.op("Mul", high, cos), self.op("Mul", low, sin)),
            axis=-1,
        )

    def _at_positions(self) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Cosines and sines of the run, [S, 1, head_dim / 2], and its positions as float32 [S, 1] and [1, S]."""
        if self._positions is None:
            positions = self.positions
            rows = self.op("Reshape", positions, self.constant([-1]))
            half = self.config.architecture.head_dim // 2
            cos, sin = (
                self.op("Reshape", self.op("Gather", cache, rows, axis=0), self.constant([-1, 1, half]))
                for cache in self.rotary_caches()
            )
            columns = self.op("Cast", positions, to=_FLOAT)
            self._positions = cos, sin, self.op("Reshape", columns, self.constant([-1, 1])), columns
        return self._positions

    def _masks_for(self, window: int) -> tuple[ir.Value, ir.Value]:
        """Masks that are added to scores: of the cache [S or 1, max_length], and of the run [S, S].

        Args:
            window: Number of positions that a token attends to, itself included; 0 for all.
        """
        if window not in self._masks:
            _, _, rows, columns = self._at_positions()
            slots = self.initializer(ir.tensor(np.arange(self._length, dtype=np.float32), name="mask.slots"))
            first = self.op("Slice", columns, *(self.constant([i]) for i in (0, 1, 1)))
            past = self._hidden(self.op("Sub", self.op("Sub", first, slots), self._number(1.0)))
            new = self._hidden(self.op("Sub", rows, columns))
            if window:
                last = self.op("Sub", rows, self._number(float(window - 1)))
                past = self.op("Add", past, self._hidden(self.op("Sub", slots, last)))
                new = self.op("Add", new, self._hidden(self.op("Sub", columns, last)))
            self._masks[window] = (self._cast(past, self.dtype), self._cast(new, self.dtype))
        return self._masks[window]

    def _hidden(self, distance: ir.Value) -> ir.Value:
        """Map whole numbers: 0 and above to 0, negative ones to -_HIDDEN."""
        clipped = self.op("Clip", distance, self._number(-1.0), self._number(0.0))
        return self.op("Mul", clipped, self._number(_HIDDEN))

    def _arranged(self, x: ir.Value, shape: Sequence[int], order: Sequence[int]) -> ir.Value:
        return self.op("Transpose", self.op("Reshape", x, self.constant(shape)), perm=list(order))

    def _slice(self, x: ir.Value, begin: int, end: int) -> ir.Value:
        """Slice the last dimension."""
        return self.op("Slice", x, *(self.constant([i]) for i in (begin, end, -1)))

    def _cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return x if self.dtype == _FLOAT else self.op("Cast", x, to=dtype)

    def _number(self, value: float, dtype: ir.DataType = _FLOAT) -> ir.Value:
        name = f"number.{value!r}" + ("" if dtype == _FLOAT else f".{dtype.name}")
        return self.initializer(ir.tensor(np.array(value, dtype.numpy()), name=name))
