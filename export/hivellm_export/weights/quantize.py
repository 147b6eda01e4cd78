"""Quantisation of one weight matrix, [N, K] as in PyTorch.

By block, in the layout of `com.microsoft::MatMulNBits` (ONNX Runtime, ContribOperators): each run of values along K
has one scale and, where asymmetric, one zero point. By channel, for products with 8-bit activations: one scale per
output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

__all__ = ["Quantized", "QuantizedChannels", "block_size", "quantize", "quantize_channels", "smoothing"]

_SMALLEST_BLOCK = 32
# 8 bits lose next to nothing with larger blocks, and products with several rows gain a fifth.
_LARGEST_BLOCK = {8: 128, 4: 32}
_MIGRATION = (
    0.6  # share of the activations' unevenness that goes to the weights; best of 0.3 to 0.8 on SmolLM2
)
_LEAST = 1e-5
_ROWS = 1 << 20  # values quantised at a time: bounds the temporaries of k-quant to some tens of megabytes

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Quantized:
    """`blob` uint8 [N, K / block, block * bits / 8], `scales` float32 [N, K / block], `zero_points` packed uint8.

    Without zero points the zero is 2 ** (bits - 1).
    """

    bits: int
    blob: NDArray[np.uint8]
    scales: Array
    zero_points: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class QuantizedChannels:
    """`values` int8 [K, N] and `scales` float32 [N]: W[n, k] = values[k, n] * scales[n] * smoothing[k]."""

    values: NDArray[np.int8]
    scales: Array


def smoothing(activations: Array, weights: Array) -> Array:
    """What the activations are to be multiplied by, float32 [K], and the columns of the weights divided by.

    Columns whose activations are large are made larger, and the activations smaller by as much: what 8 bits lose is
    then shared between the two. SmoothQuant (Xiao et al., 2022), equation 4, with an exponent of 0.6.

    Args:
        activations: float32 [K], the largest magnitude of each input.
        weights: float32 [K], the largest magnitude of each column, of all matrices that have this input.
    """
    wanted = np.maximum(weights, _LEAST) ** (1 - _MIGRATION)
    given = np.maximum(activations, _LEAST) ** _MIGRATION
    factors = (wanted / given).astype(np.float32)
    return factors / np.exp(np.log(factors).mean())


def quantize_channels(weight: Array, smoothing: Array) -> QuantizedChannels:
    """Quantise `weight` float32 [N, K], divided by `smoothing` float32 [K], to 8 bits, one scale per output."""
    smoothed = weight / smoothing
    scales = np.abs(smoothed).max(axis=1) / np.float32(127)
    safe = np.where(scales == 0, np.float32(1), scales)
    values = np.rint(smoothed / safe[:, None]).clip(-127, 127).astype(np.int8)
    return QuantizedChannels(np.ascontiguousarray(values.T), scales)


def block_size(columns: int, bits: int) -> int:
    """Values along K that share a scale: the largest size that divides K, or the smallest, which pads it."""
    size = _LARGEST_BLOCK[bits]
    while size > _SMALLEST_BLOCK and columns % size:
        size //= 2
    return size


def quantize(weight: Array, bits: int) -> Quantized:
    """Quantise `weight` float32 [N, K]; K is padded with zeros to a multiple of its `block_size`.

    8 bits: symmetric round to nearest. 4 bits: symmetric round to nearest or k-quant (asymmetric, scale and zero
    point searched for the least weighted error), whichever restores this matrix with the smaller squared error.
    """
    rows, columns = weight.shape
    block = block_size(columns, bits)
    blocks = -(-columns // block)
    if columns % block:
        weight = np.pad(weight, ((0, 0), (0, blocks * block - columns)))
    flat = weight.reshape(-1, block)
    nearest = _chunked(lambda part: _round_to_nearest(part, bits), flat)
    if bits == 4:
        searched = _chunked(_k_quant, flat)
        if searched[3] < nearest[3]:
            nearest = searched
    values, scales, zeros, _ = nearest
    blob = values.reshape(rows, blocks, block)
    packed = _pack(blob) if bits == 4 else blob
    zero_points = None
    if zeros is not None:
        grid = zeros.reshape(rows, blocks)
        zero_points = _pack(np.pad(grid, ((0, 0), (0, blocks % 2))))
    return Quantized(bits, packed, scales.reshape(rows, blocks), zero_points)


_Result = tuple[NDArray[np.uint8], Array, "NDArray[np.uint8] | None", float]


def _chunked(method: Callable[[Array], _Result], flat: Array) -> _Result:
    step = _ROWS // flat.shape[1]
    results = [method(flat[i : i + step]) for i in range(0, len(flat), step)]
    values, scales, zeros, errors = zip(*results, strict=True)
    joined = None if zeros[0] is None else np.concatenate(zeros)
    return np.concatenate(values), np.concatenate(scales), joined, float(sum(errors))


def _round_to_nearest(data: Array, bits: int) -> _Result:
    zero = 1 << (bits - 1)
    # The value of largest magnitude lands on -zero: one more step than the positive side has (as GGML's Q4_0).
    extreme = np.take_along_axis(data, np.abs(data).argmax(axis=1)[:, None], axis=1)
    scales = (extreme / -zero).astype(np.float32)
    safe = np.where(scales == 0, np.float32(1), scales)
    values = np.clip(np.rint(data / safe) + zero, 0, 2 * zero - 1)
    error = float(np.square((values - zero) * scales - data).sum(dtype=np.float64))
    return values.astype(np.uint8), scales[:, 0], None, error


def _k_quant(data: Array) -> _Result:
    with np.errstate(divide="ignore", invalid="ignore"):  # a block of equal values divides by zero
        values, scales, zeros = quant_tensor_k_quant_cpu(data, num_bits=4, group_size=data.shape[1])
    values = np.nan_to_num(values).astype(np.uint8)
    scales = scales.astype(np.float32)
    error = float(np.square((values - zeros.astype(np.float32)) * scales - data).sum(dtype=np.float64))
    return values, scales[:, 0], zeros[:, 0], error


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit values a byte along the last axis, the first in the low half."""
    high: NDArray[np.uint8] = values[..., 1::2] << np.uint8(4)
    return values[..., ::2] | high
