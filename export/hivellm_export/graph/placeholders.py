"""The placeholder operators of a trace, which a lowering replaces by the operators of a target.

They are in the domain `hivellm`, version 1. A placeholder names the weights that it needs and has none of them.
Hidden states are [T, H] with T = B * S tokens: only products of two dimensions take a bias matrix.

* `Embedding(input_ids) {weight}`
* `Linear(x) {site, modules, sizes, in_features}`: linear modules with one input, their outputs side by side.
  `modules` are their names, joined by commas; `sizes` are their output features.
* `RMSNorm(x) {weight, epsilon}`
* `HeadRMSNorm(x) {weight, epsilon, head_dim, width}`: the norm of queries or keys, which Qwen3 has.
* `Attention(query, key, value, input_ids, past_key, past_value, seqlens_k, total_sequence_length)
  {width, num_heads, kv_num_heads, scale, sliding_window}`: gives the result and the present key and value. Without
  `key` and `value`, `query` holds q, k and v side by side. `input_ids` gives B and S.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["DOMAIN", "linear_nodes", "modules_of", "sizes_of", "text_of"]

DOMAIN = "hivellm"


def linear_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every `Linear` of a trace, in its order."""
    return (node for node in graph if (node.domain, node.op_type) == (DOMAIN, "Linear"))


def text_of(node: ir.Node, attribute: str) -> str:
    """A text attribute of a placeholder."""
    return node.attributes[attribute].as_string()


def modules_of(node: ir.Node) -> tuple[str, ...]:
    """The modules of a `Linear`, by their names in transformers."""
    return tuple(text_of(node, "modules").split(","))


def sizes_of(node: ir.Node) -> tuple[int, ...]:
    """The output features of each module of a `Linear`."""
    return tuple(node.attributes["sizes"].as_ints())
