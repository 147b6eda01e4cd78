"""Lowerings to contrib operators of ONNX Runtime, for the CPU, CUDA and DirectML providers.

* `cpu`: float32 activations. GroupQueryAttention computes the rotary embedding. SkipSimplifiedLayerNormalization
  computes residual sum and norm. Quantised weights use MatMulNBits with accuracy level 4 (int8 activations).
* `cuda`: float16 or bfloat16. GroupQueryAttention also computes the norms of query and key. MatMulNBits computes in
  the graph's type.
* `dml`: float16 and fixed shapes. DirectML's GroupQueryAttention reads only query, key, value and lengths. So norms
  and rotary embedding are operators before it, and q, k and v are products of their own.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hivellm_export.graph.int8_attention import Int8CacheAttention
from hivellm_export.graph.lowering import Lowering
from hivellm_export.graph.placeholders import text_of
from hivellm_export.graph.shapes import apply_form
from hivellm_ort.errors import ExportError
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["CpuLowering", "CudaLowering", "DmlLowering"]


class ContribLowering(Lowering):
    """With the contrib operators of ONNX Runtime: fused norms and GroupQueryAttention."""

    _token_shape: ir.Value | None = None

    def rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to SimplifiedLayerNormalization, or to the fused operator if a residual sum is before it."""
        weight = self.vector(text_of(node, "weight"))
        epsilon = node.attributes["epsilon"].as_float()
        x = node.inputs[0]
        add = x.producer()
        if add is None or add.op_type != "Add":
            return (
                self.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1),
            )
        # The fused operator also gives the residual sum, which later layers use.
        normed, _, _, total = self.op(
            "SkipSimplifiedLayerNormalization",
            *add.inputs,
            weight,
            domain=DOMAIN_MS,
            outputs=4,
            epsilon=epsilon,
        )
        later = [use for use in x.uses() if use.node is not node]
        for use in later:
            use.node.replace_input_with(use.idx, total)
        total.name = x.name if later else ""
        return (normed,)

    def head_rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to SimplifiedLayerNormalization on [T * heads, head_dim]."""
        weight = self.vector(text_of(node, "weight"))
        epsilon = node.attributes["epsilon"].as_float()
        head_dim = node.attributes["head_dim"].as_int()
        width = node.attributes["width"].as_int()
        heads = self.op("Reshape", node.inputs[0], self.constant([-1, width // head_dim, head_dim]))
        normed = self.op(
            "SimplifiedLayerNormalization", heads, weight, axis=-1, epsilon=epsilon, stash_type=1
        )
        return (self.op("Reshape", normed, self.constant([-1, width])),)

    def attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to GroupQueryAttention with the rotary embedding inside."""
        *qkv, input_ids, past_key, past_value, seqlens_k, total = node.inputs
        shape = self.token_shape(input_ids)
        queries = [self.op("Reshape", value, shape) for value in qkv]
        query, key, value = queries if len(queries) == 3 else (queries[0], None, None)
        caches = self.rotary_caches()
        inputs = (query, key, value, past_key, past_value, seqlens_k, total, *caches)
        return self.group_query_attention(node, *inputs, do_rotary=1, rotary_interleaved=0)

    def token_shape(self, input_ids: ir.Value) -> ir.Value:
        """int64 [3]: B, S and -1. GroupQueryAttention needs queries of three dimensions."""
        if self._token_shape is None:
            self._token_shape = self.op("Concat", self.op("Shape", input_ids), self.constant([-1]), axis=0)
        return self._token_shape

    def group_query_attention(
        self, node: ir.Node, *inputs: ir.Value | None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add GroupQueryAttention for the placeholder `node`: the result [T, H], and present key and value."""
        attended, *present = self.op(
            "GroupQueryAttention",
            *inputs,
            domain=DOMAIN_MS,
            outputs=3,
            num_heads=node.attributes["num_heads"].as_int(),
            kv_num_heads=node.attributes["kv_num_heads"].as_int(),
            scale=node.attributes["scale"].as_float(),
            local_window_size=self.window(node),
            **attributes,
        )
        width = node.attributes["width"].as_int()
        return self.op("Reshape", attended, self.constant([-1, width])), *present

    def window(self, node: ir.Node) -> int:
        """Number of positions that a token attends to, itself included; -1 for all."""
        return node.attributes["sliding_window"].as_int() or -1


class CpuLowering(ContribLowering):
    """For the CPU provider."""

    _int8_attention: Int8CacheAttention | None = None

    def begin(self) -> None:
        """Remove the shapes of inner values, whose dimensions the trace has named; prepare the 8-bit cache."""
        for node in self.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
        if self.form.cache_dtype == "int8":
            apply_form(self.graph, self.config)
            windows = [self.window(node) for node in self.graph if node.op_type == "Attention"]
            self._int8_attention = Int8CacheAttention(self, self.cache_scales, windows)

    def attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to GroupQueryAttention, or to attention on 8-bit keys and values if the cache holds these."""
        if self._int8_attention is None:
            return super().attention(node)
        qkv, input_ids = node.inputs[:-5], node.inputs[-5]
        shape = self.token_shape(input_ids)
        return tuple(self._int8_attention.lower(node, qkv, window=self.window(node), shape=shape))


class CudaLowering(ContribLowering):
    """For the CUDA provider."""

    accuracy_level = 0

    def begin(self) -> None:
        """Apply the types of the form."""
        apply_form(self.graph, self.config)
        self._norms: dict[ir.Value, tuple[ir.Value, float]] = {}

    def head_rms_norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Add nothing: GroupQueryAttention computes the norm, so note it for `group_query_attention`."""
        weight = self.vector(text_of(node, "weight"))
        self._norms[node.inputs[0]] = (weight, node.attributes["epsilon"].as_float())
        return (node.inputs[0],)

    def group_query_attention(
        self, node: ir.Node, *inputs: ir.Value | None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add GroupQueryAttention with the norms of query and key, inputs 14 and 15, if the model has them."""
        norms = [self._norms[value] for value in node.inputs[:2] if value in self._norms]
        if norms:
            inputs = (*inputs, *[None] * (14 - len(inputs)), *(weight for weight, _ in norms))
            attributes["qk_norm_epsilon"] = norms[0][1]
        return super().group_query_attention(node, *inputs, **attributes)


class DmlLowering(ContribLowering):
    """For the DirectML provider. The trace has q, k and v split."""

    def begin(self) -> None:
        """Apply the types and shapes of the form."""
        apply_form(self.graph, self.config)

    def attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Lower to RotaryEmbedding, and GroupQueryAttention without it."""
        *qkv, _, past_key, past_value, seqlens_k, total = node.inputs
        numbers = self.config.architecture
        heads = (numbers.num_attention_heads, numbers.num_key_value_heads, numbers.num_key_value_heads)
        query, key, value = (
            self.op("Reshape", part, self.constant([1, -1, count * numbers.head_dim]))
            for part, count in zip(qkv, heads, strict=True)
        )
        query, key = (
            self.op(
                "RotaryEmbedding",
                part,
                self.positions,
                *self.rotary_caches(),
                domain=DOMAIN_MS,
                interleaved=0,
            )
            for part in (query, key)
        )
        return self.group_query_attention(
            node, query, key, value, past_key, past_value, seqlens_k, total, do_rotary=0
        )

    def window(self, node: ir.Node) -> int:
        """DirectML's attention has no window. This matters only if the cache is longer than the window."""
        window, (length,) = node.attributes["sliding_window"].as_int(), self.form.shapes["max_length"]
        if 0 < window < length:
            raise ExportError(
                f"--target dml: the model attends to the last {window} tokens, DirectML to all {length} of the "
                f"cache: use --context {window}, or another --target"
            )
        return -1
