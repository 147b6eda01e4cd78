"""Weights of the base model, read from a bundle as float32 under their Hugging Face names.

DoRA needs `||W + s B A||`. Where a package brings an adapter that was not prepared at export, W comes from the
bundle itself: exact in fp32, and what the graph really multiplies by in int8 and int4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.tensors import bfloat16_as_float32
from hivellm_ort.contract import DECODER_JSON, WEIGHTS_FILE, DecoderConfig, Site, StoredWeights
from hivellm_ort.errors import LoadError

__all__ = ["BaseWeights"]

Array = NDArray[np.float32]

_DTYPES = ("float32", "float16", "bfloat16")


class BaseWeights:
    """Reads `weights.bin` of a base bundle, one module at a time.

    Args:
        folder: The bundle.
        config: Its `decoder.json`.

    Raises:
        LoadError: The bundle does not say where its weights are, or has no `weights.bin`.
    """

    def __init__(self, folder: Path, config: DecoderConfig):
        if config.merged is not None:
            raise LoadError(
                f"the base bundle {config.name!r} has an adapter merged in and takes no other: export the base alone"
            )
        self._stored = config.weights or config.half_weights
        self._dtype = "float32" if config.weights else config.graph.activation_dtype
        if self._dtype not in _DTYPES:
            raise LoadError(
                f"{DECODER_JSON}: /graph/activation_dtype: weights in {self._dtype!a} are not known: update "
                "hivellm-ort, or export the base again"
            )
        if not self._stored:
            raise LoadError(
                f"{DECODER_JSON} of the base bundle {config.name!r} does not say where its weights are (contract "
                f"{config.contract_version}): export the base again"
            )
        try:
            self._data = np.memmap(folder / WEIGHTS_FILE, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise LoadError(
                f"{WEIGHTS_FILE} of the base bundle {config.name!r} cannot be read: {error}"
            ) from error
        self._places = {}
        for site in config.sites:
            stored, begin = self._stored.get(site.name), 0
            for part in site.parts:
                self._places[part.module] = (site, stored, slice(begin, begin + part.size))
                begin += part.size

    def tensor(self, name: str) -> Array:
        """Return the weight `<module>.weight`, float32 [N, K], or `<module>.bias`, float32 [N].

        Raises:
            LoadError: The bundle has no such tensor, or its offset is beyond the file.
        """
        module, _, kind = name.rpartition(".")
        site, stored, rows = self._places.get(module, (None, None, slice(0)))
        if site is None or stored is None or (kind == "bias" and stored.bias is None):
            raise LoadError(f"{DECODER_JSON}: /weights has no offset for {name}: export the base again")
        if kind == "bias":
            return self._floats(stored.bias, site.out_features)[rows].copy()
        if stored.smoothing is not None:
            values = self._view(stored.weight, np.int8, site.in_features, site.out_features)[:, rows]
            scales = self._floats(stored.scales, site.out_features)[rows]
            smoothing = self._floats(stored.smoothing, site.in_features)
            return np.ascontiguousarray(values.T * scales[:, None] * smoothing)
        if stored.bits == 0:
            stacked = self._floats(stored.weight, site.in_features, site.out_features)
            return np.ascontiguousarray(stacked[:, rows].T)
        return self._dequantized(site, stored, rows)

    def _dequantized(self, site: Site, stored: StoredWeights, rows: slice) -> Array:
        """Undo MatMulNBits' quantisation: (value - zero point) * scale, block by block along K."""
        bits, block, count = stored.bits, stored.block, site.out_features
        if bits not in (4, 8) or block < 2 or block % 2:
            raise LoadError(f"{DECODER_JSON}: /weights: {bits} bits in blocks of {block} are not known")
        blocks = -(-site.in_features // block)
        values = self._view(stored.weight, np.uint8, count, blocks, block * bits // 8)[rows]
        scales = self._floats(stored.scales, count, blocks)[rows]
        zeros: NDArray[np.float32] | np.float32 = np.float32(1 << (bits - 1))
        if stored.zero_points is not None:
            packed = self._view(stored.zero_points, np.uint8, count, -(-blocks * bits // 8))[rows]
            zeros = _unpacked(packed, bits)[:, :blocks, None]
        weight = (_unpacked(values, bits) - zeros) * scales[:, :, None]
        return np.ascontiguousarray(weight.reshape(len(scales), -1)[:, : site.in_features])

    def _floats(self, offset: int | None, *shape: int) -> Array:
        """Return floats of the bundle's type as float32."""
        if self._dtype == "bfloat16":
            return bfloat16_as_float32(self._view(offset, np.uint16, *shape))
        return self._view(offset, np.dtype(self._dtype), *shape).astype(np.float32, copy=False)

    def _view(self, offset: int | None, dtype: Any, *shape: int) -> NDArray[Any]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if offset is None or offset > len(self._data) - size:
            raise LoadError(
                f"{DECODER_JSON}: /weights: {offset} is not an offset in {WEIGHTS_FILE} for {size} bytes"
            )
        view: NDArray[Any] = self._data[offset : offset + size].view(dtype).reshape(shape)
        return view


def _unpacked(values: NDArray[np.uint8], bits: int) -> Array:
    """Return one float32 per value. The low half of a byte holds the first of two 4-bit values."""
    if bits == 8:
        return values.astype(np.float32)
    pairs = np.stack([values & 15, values >> 4], axis=-1)
    return pairs.reshape(*values.shape[:-1], -1).astype(np.float32)
