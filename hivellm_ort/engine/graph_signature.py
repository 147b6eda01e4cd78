"""Compare the inputs and outputs of a graph with `decoder.json`: names, types, shapes.

ONNX Runtime compares what is bound with the inputs of the graph, but only in the first run. By then all buffers are
allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hivellm_ort.contract import (
    GREEDY_OUTPUT,
    LOGITS,
    DecoderConfig,
    past_names,
    present_names,
)

__all__ = ["signature_fault"]

_Size = int | str
"""A number, or the name of a dimension that may have any."""

_Values = Mapping[str, tuple[str, tuple[_Size, ...]]]
"""The type, as ONNX Runtime names it, and the shape of each value by name."""

_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int8": "tensor(int8)",
}
_INT32 = ("seqlens_k", "total_sequence_length")


def signature_fault(session: Any, config: DecoderConfig, *, adapters: bool) -> str | None:
    """Find a difference between a graph and `decoder.json`.

    Args:
        session: An `onnxruntime.InferenceSession` of the graph.
        config: The `decoder.json` of its bundle.
        adapters: Whether the graph must take adapter weights at every site.

    Returns:
        What differs, as the end of a sentence about the graph. None if nothing differs.
    """
    return next(_faults(session, config, adapters=adapters), None)


def _faults(session: Any, config: DecoderConfig, *, adapters: bool) -> Iterator[str]:
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    yield from _differences("input", inputs, _inputs(config, adapters=adapters))
    yield from _differences("output", outputs, _outputs(config), exact=False)


def _differences(
    role: str, found: Mapping[str, tuple[str, Sequence[Any]]], described: _Values, *, exact: bool = True
) -> Iterator[str]:
    """Find every difference.

    Unless `exact`, the graph may have more values than `decoder.json` says, as in a later version, and a dimension
    that is a number on one side may be free on the other.
    """
    for name in described:
        if name not in found:
            yield f"has no {role} {name}, which decoder.json promises"
    for name, (kind, shape) in found.items():
        if name not in described:
            if exact:
                yield f"has an {role} {name[:200]!a} that decoder.json does not tell of"
            continue
        wanted, sizes = described[name]
        if kind != wanted:
            yield f"has {role} {name} of {kind}, decoder.json says {wanted}"
        alike = len(shape) == len(sizes) and all(
            one == other
            if isinstance(one, int) and isinstance(other, int)
            else not exact or _both_free(one, other)
            for one, other in zip(shape, sizes, strict=True)
        )
        if not alike:
            yield f"has {role} {name} of shape {_shown(shape)}, decoder.json says {_shown(sizes)}"


def _both_free(one: object, other: object) -> bool:
    return not isinstance(one, int) and not isinstance(other, int)


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join(str(size) if isinstance(size, int) else 'any' for size in shape)}]"


def _size(config: DecoderConfig, name: _Size) -> _Size:
    """Get a dimension as the graph has it: a number if only one value is allowed."""
    sizes = config.graph.shapes.get(name, ()) if isinstance(name, str) else (name,)
    return sizes[0] if len(sizes) == 1 else str(name)


def _inputs(config: DecoderConfig, *, adapters: bool) -> _Values:
    form, numbers = config.graph, config.architecture
    batch, length = _size(config, "batch_size"), _size(config, "max_length")
    inputs: dict[str, tuple[str, tuple[_Size, ...]]] = {
        name: (
            f"tensor({'int32' if name in _INT32 else 'int64'})",
            tuple(_size(config, size) for size in shape),
        )
        for name, shape in form.inputs.items()
    }
    past = _TYPES[form.cache_dtype], (batch, numbers.num_key_value_heads, length, numbers.head_dim)
    for layer in range(numbers.num_hidden_layers):
        inputs |= dict.fromkeys(past_names(layer), past)
    if not adapters:
        return inputs
    kind = _TYPES[form.adapter_dtype]
    rows, gates = (1, 1) if batch == 1 else ("rows", "rank")
    for site in config.sites:
        inputs[site.lora_A] = kind, (site.in_features, "rank")
        inputs[site.lora_B] = kind, ("rank", site.out_features)
        inputs[site.gate] = kind, (rows, gates)
        inputs[site.scale] = kind, (rows, site.out_features)
        if site.bias:
            inputs[site.bias_input] = kind, (rows, site.out_features)
    return inputs


def _outputs(config: DecoderConfig) -> _Values:
    form, numbers = config.graph, config.architecture
    batch, rows = _size(config, "batch_size"), _size(config, "rows")
    length = _size(config, "sequence_length" if form.cache_update == "new_tokens" else "max_length")
    outputs: dict[str, tuple[str, tuple[_Size, ...]]] = {
        LOGITS: ("tensor(float)", (rows, numbers.vocab_size))
    }
    if form.greedy_output:
        outputs[GREEDY_OUTPUT] = "tensor(int64)", (rows,)
    present = _TYPES[form.cache_dtype], (batch, numbers.num_key_value_heads, length, numbers.head_dim)
    for layer in range(numbers.num_hidden_layers):
        outputs |= dict.fromkeys(present_names(layer), present)
    return outputs
