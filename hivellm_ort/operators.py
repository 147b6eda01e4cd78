"""The operators of graphs, a part of the contract: the exporter writes no other, the runtime runs no other unsigned.

`docs/contract.md` lists them too. A graph of these has no loop, so every node of it runs once at most. The lists
follow ONNX Runtime's `docs/OperatorKernels.md` (CUDA, DirectML) and `coreml_supported_mlprogram_ops.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DOMAIN_MS", "OPERATORS", "ROUNDED_CACHE", "Operators", "operators_of"]

Operators = Mapping[str, frozenset[str]]
"""Operator types by domain; the domain "" is ai.onnx."""

DOMAIN_MS = "com.microsoft"

_COMMON = frozenset({
    "Add", "Cast", "Concat", "Constant", "Gather", "Gemm", "MatMul", "Mul", "Reshape", "Sigmoid", "Split",
    # Operators of activation functions.
    "Clip", "Div", "Erf", "LeakyRelu", "Pow", "Relu", "Softplus", "Sqrt", "Sub", "Tanh",
})  # fmt: skip
_NORMS = frozenset({"SimplifiedLayerNormalization"})
_ATTENTION = frozenset({"GroupQueryAttention", "SkipSimplifiedLayerNormalization"})

OPERATORS: Mapping[str, Operators] = {
    "cpu": {
        "": _COMMON | _NORMS | {"Abs", "QuantizeLinear", "ReduceMax", "Shape"},
        DOMAIN_MS: _ATTENTION | {"GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits"},
    },
    "cuda": {
        "": _COMMON | _NORMS | {"ArgMax", "Shape"},
        DOMAIN_MS: _ATTENTION | {"MatMulNBits"},
    },
    "dml": {
        "": _COMMON | _NORMS,
        DOMAIN_MS: _ATTENTION | {"RotaryEmbedding"},
    },
    "portable": {
        "": _COMMON | {"ReduceMean", "Slice", "Softmax", "Transpose"},
    },
}
"""By target."""

ROUNDED_CACHE: Mapping[str, Operators] = {
    "cpu": {
        "": frozenset({
            "And", "DequantizeLinear", "Equal", "Expand", "Greater", "GreaterOrEqual", "Identity", "If",
            "LessOrEqual", "Max", "Min", "Range", "ScatterND", "Slice", "Softmax", "Transpose", "Unsqueeze", "Where",
        }),
        DOMAIN_MS: frozenset({"FusedMatMul", "RotaryEmbedding"}),
    },
}  # fmt: skip
"""By target: those besides, where keys and values have 8 bits. Then `If` has them too, one inside of no other."""


def operators_of(target: str, cache_dtype: str) -> Operators:
    """Return the operators of the graphs of a bundle.

    Args:
        target: Its target. An unknown target has no operators.
        cache_dtype: Type of its cached keys and values.
    """
    found = dict(OPERATORS.get(target, {}))
    if cache_dtype == "int8":
        for domain, types in ROUNDED_CACHE.get(target, {}).items():
            found[domain] = found.get(domain, frozenset()) | types
    return found
