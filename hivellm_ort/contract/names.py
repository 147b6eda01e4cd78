"""The version of the contract, and the names of files, inputs and outputs."""

from __future__ import annotations

__all__ = [
    "ADAPTER_FILE",
    "ADAPTER_GRAPH",
    "BASE_GRAPH",
    "CONTRACT_VERSION",
    "DECODER_JSON",
    "GREEDY_OUTPUT",
    "LOGITS",
    "WEIGHTS_FILE",
    "past_names",
    "present_names",
]

CONTRACT_VERSION = "1.7"
DECODER_JSON = "decoder.json"
BASE_GRAPH = "decoder.onnx"
ADAPTER_GRAPH = "decoder.adapters.onnx"
WEIGHTS_FILE = "weights.bin"
ADAPTER_FILE = "adapter.safetensors"
LOGITS = "logits"
GREEDY_OUTPUT = "token_ids"


def past_names(layer: int) -> tuple[str, str]:
    """Return the graph inputs that hold the key and value cache of `layer`, each [B, kv_heads, max_len, head_dim]."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the graph outputs bound to the same buffers as `past_names(layer)`."""
    return f"present.{layer}.key", f"present.{layer}.value"
