"""Compare the weights in the graph of a bundle with those of its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.verify.report import Bound
from hivellm_ort.adapters.base_weights import BaseWeights
from hivellm_ort.contract import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    DECODER_JSON,
    DecoderConfig,
    Part,
    Site,
    StoredWeights,
)
from hivellm_ort.errors import ExportError

__all__ = ["BundleWeights", "check_weights", "compare"]

Array = NDArray[np.float32]

_NORMS = 14  # index of the first input of GroupQueryAttention that is a norm of queries or keys
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


class BundleWeights:
    """The weights of a bundle, dequantised, by their names in transformers.

    Their offsets are read from the graph, because the graph is what runs.

    Args:
        folder: The bundle's folder.
        config: Its `decoder.json`.
        sites: The sites of the graph. `decoder.json` of a merged bundle has none.
        where: The bundle, for messages.

    Attributes:
        normed_attention: Whether attention computes the norms of queries and keys, which the CPU provider cannot do.

    Raises:
        ExportError: The two graphs of the bundle, or a graph and `decoder.json`, disagree about the offset of a
            weight.
    """

    def __init__(self, folder: Path, config: DecoderConfig, sites: Sequence[Site], *, where: str):
        graph = ir.load(folder / BASE_GRAPH).graph
        self._values = graph.initializers
        self.normed_attention = any(
            node.op_type == "GroupQueryAttention" and any(node.inputs[_NORMS:]) for node in graph
        )
        if config.merged is None:
            _check_shared(self._values, ir.load(folder / ADAPTER_GRAPH).graph.initializers, where)
        numbers = config.architecture
        tables = [
            Site(name, numbers.hidden_size, (Part(name, numbers.vocab_size),))
            for name in (_EMBEDDING, _HEAD)
            if any(key == name or key.startswith(f"{name}.") for key in self._values)
        ]
        stored = {site.name: self._stored(site) for site in [*sites, *tables]}
        found = {name: place for name, place in stored.items() if place is not None}
        for name, place in {**config.weights, **config.half_weights}.items():
            if place != found.get(name):
                raise ExportError(
                    f"{where}: {DECODER_JSON} and {BASE_GRAPH} disagree about the offset of {name}"
                )
        key = "weights" if config.graph.activation_dtype == "float32" else "half_weights"
        places: dict[str, Any] = {"weights": {}, "half_weights": {}, key: found}
        whole = dataclasses.replace(config, merged=None, sites=(*sites, *tables), **places)
        self._matrices = BaseWeights(folder, whole)
        self._plain = {
            (f"{name}.weight" if name in (_EMBEDDING, _HEAD) else name): name
            for name in self._values
            if name in (_EMBEDDING, _HEAD) or (name.startswith("model.") and name.endswith("norm.weight"))
        }
        self._names = {
            f"{part.module}.{kind}"
            for site in (*sites, *tables)
            for part in site.parts
            for kind in ("weight", *(["bias"] if part.bias else []))
        } | set(self._plain)

    @property
    def names(self) -> set[str]:
        """The tensors. The LM head is one only if it has its own values."""
        return self._names

    def tensor(self, name: str) -> Array:
        """A tensor, float32 [N, K] or [N]."""
        if name in self._plain:
            return self._array(self._plain[name])
        return self._matrices.tensor(name)

    def rotary(self) -> tuple[Array, Array]:
        """Cosines and sines, each [positions, head_dim / 2]."""
        return self._array("rotary.cos"), self._array("rotary.sin")

    def cache_scales(self, name: str) -> Array | None:
        """Scales of keys or values in 8 bits, by graph input, [kv_heads * head_dim]; None for floats."""
        return self._array(f"{name}.scale") if f"{name}.scale" in self._values else None

    def _array(self, name: str) -> Array:
        tensor = self._values[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy()).astype(np.float32)

    def _stored(self, site: Site) -> StoredWeights | None:
        """Offsets of a site's weights; None for a table of floats, which is [N, K]."""
        stem = "+".join(part.module for part in site.parts)
        bias = self._offset(f"{site.name}.base_bias") if site.bias else None
        name = next((name for name in (f"{stem}.quantized", f"{stem}.table") if name in self._values), None)
        if name is None:
            tables = (_EMBEDDING, _HEAD)
            return None if stem in tables else StoredWeights(self._offset(stem), bias=bias)
        node = next(iter(self._values[name].uses())).node
        scales, zeros = self._offset(f"{stem}.scales"), f"{stem}.zero_points"
        if node.op_type == "MatMulIntegerToFloat":
            first = site.parts[0].module
            smoothing = next(
                key
                for key in self._values
                if key.endswith(".smoothing") and first in key.removesuffix(".smoothing").split("+")
            )
            return StoredWeights(
                self._offset(name), 8, scales=scales, bias=bias, smoothing=self._offset(smoothing)
            )
        return StoredWeights(
            self._offset(name),
            node.attributes["bits"].as_int(),
            node.attributes["block_size"].as_int(),
            scales=scales,
            zero_points=self._offset(zeros) if zeros in self._values else None,
            bias=bias,
        )

    def _offset(self, name: str) -> int:
        tensor = self._values[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None
        return tensor.offset


def check_weights(
    found: BundleWeights,
    names: Iterable[str],
    tensor: Callable[[str], Array],
    *,
    bound: Bound,
    where: str,
    source: str,
    progress: Callable[[int], object],
) -> float:
    """Compare every tensor of a bundle with that of its source.

    Args:
        found: The weights of the bundle.
        names: The tensors of the source.
        tensor: Gives a tensor of the source, float32.
        bound: Bound of the bundle's precision.
        where: The bundle, for messages.
        source: The source, for messages.
        progress: Called with the number of values that were compared.

    Returns:
        The largest relative error.

    Raises:
        ExportError: A tensor is only in one of the two, or differs by more than the bound. The message names it.
    """
    wanted = set(names)
    for name in sorted(wanted ^ found.names):
        there = "the bundle" if name in found.names else source
        raise ExportError(f"{where}: tensor {name} is only in {there}")
    worst = 0.0
    for name in sorted(wanted):
        expected, actual = tensor(name), found.tensor(name)
        worst = max(worst, compare(expected, actual, bound, name=name, where=where, source=source))
        progress(expected.size)
    return worst


def compare(expected: Array, actual: Array, bound: Bound, *, name: str, where: str, source: str) -> float:
    """Compare one tensor.

    Returns:
        Its relative error.

    Raises:
        ExportError: It has another shape, or differs by more than the bound.
    """
    start = f"{where}: tensor {name} differs from {source}"
    if expected.shape != actual.shape:
        raise ExportError(f"{start}: its shape is {list(actual.shape)} and not {list(expected.shape)}")
    wanted, got = (array.reshape(len(array), -1) for array in (expected, actual))
    length = float(np.einsum("ij,ij->i", wanted, wanted).sum(dtype=np.float64))
    difference = got - wanted
    error = float(np.einsum("ij,ij->i", difference, difference).sum(dtype=np.float64)) ** 0.5
    if length == 0.0:
        if error > 0.0:
            raise ExportError(f"{start}: it is zero there")
        return 0.0
    factor = 1 + float(np.einsum("ij,ij->i", difference, wanted).sum(dtype=np.float64)) / length
    error /= length**0.5
    if not abs(factor - 1) <= bound.scale:
        raise ExportError(f"{start}: it is {factor:.4f} times as large (rounding explains {bound.scale:g})")
    if not error <= bound.error:
        raise ExportError(f"{start} by {error:.2%} of its size (rounding explains {bound.error:.2%})")
    return error


def _check_shared(base: Any, adapted: Any, where: str) -> None:
    """Check that both graphs use the same weights."""
    for name, value in base.items():
        first, second = value.const_value, getattr(adapted.get(name), "const_value", None)
        if isinstance(first, ir.ExternalTensor) and (
            not isinstance(second, ir.ExternalTensor) or second.offset != first.offset
        ):
            raise ExportError(f"{where}: {BASE_GRAPH} and {ADAPTER_GRAPH} do not share tensor {name}")
