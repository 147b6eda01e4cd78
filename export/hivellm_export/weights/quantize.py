"""Quantise one weight matrix, [N, K] as in PyTorch.

* By block, in the layout of `com.microsoft::MatMulNBits` (ONNX Runtime, ContribOperators): each block of values along
  K has one scale and, if asymmetric, one zero point.
* By channel, for products with 8-bit activations: each output has one scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

__all__ = ["Quantized", "QuantizedChannels", "block_size", "quantize", "quantize_channels", "smoothing"]

_SMALLEST_BLOCK = 32
# With 8 bits, larger blocks lose almost nothing, and products with several rows are a fifth faster.
_LARGEST_BLOCK = {8: 128, 4: 32}
_MIGRATION = (
    0.6  # share of the activations' unevenness that goes to the weights; best of 0.3 to 0.8 on SmolLM2
)
_LEAST = 1e-5
_ROWS = 1 << 20  # values quantised at a time: bounds the temporaries of k-quant to some tens of megabytes

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Quantized:
    """A matrix that was quantised by block.

    Attributes:
        bits: Bits of a value.
        blob: The packed values, uint8 [N, K / block, block * bits / 8].
        scales: float32 [N, K / block].
        zero_points: Packed uint8; None means 2 ** (bits - 1) everywhere.
    """

    bits: int
    blob: NDArray[np.uint8]
    scales: Array
    zero_points: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class QuantizedChannels:
    """A matrix that was quantised by channel: W[n, k] = values[k, n] * scales[n] * smoothing[k].

    Attributes:
        values: int8 [K, N].
        scales: float32 [N].
    """

    values: NDArray[np.int8]
    scales: Array


def smoothing(activations: Array, weights: Array) -> Array:
    """Factors that make activations easier to quantise, at the cost of the weights.

    Activations are multiplied by the factors, and columns of weights divided by them. So large activations become
    smaller, and both lose about as much with 8 bits. SmoothQuant (Xiao et al., 2022), equation 4, with an exponent of
    0.6.

    Args:
        activations: Largest magnitude of each input, float32 [K].
        weights: Largest magnitude of each column in all matrices with this input, float32 [K].

    Returns:
        The factors, float32 [K]; their geometric mean is 1.
    """
    wanted = np.maximum(weights, _LEAST) ** (1 - _MIGRATION)
    given = np.maximum(activations, _LEAST) ** _MIGRATION
    factors = (wanted / given).astype(np.float32)
    return factors / np.exp(np.log(factors).mean())


def quantize_channels(weight: Array, smoothing: Array) -> QuantizedChannels:
    """Quantise `weight` float32 [N, K], divided by `smoothing` float32 [K], to 8 bits with a scale per output."""
    smoothed = weight / smoothing
    scales = np.abs(smoothed).max(axis=1) / np.float32(127)
    safe = np.where(scales == 0, np.float32(1), scales)
    values = np.rint(smoothed / safe[:, None]).clip(-127, 127).astype(np.int8)
    return QuantizedChannels(np.ascontiguousarray(values.T), scales)


def block_size(columns: int, bits: int) -> int:
    """Number of values along K that share a scale: the largest size that divides K, or the smallest, with padding."""
    size = _LARGEST_BLOCK[bits]
    while size > _SMALLEST_BLOCK and columns % size:
        size //= 2
    return size


def quantize(weight: Array, bits: int) -> Quantized:
    """Quantise `weight` float32 [N, K] by block. K is padded with zeros to a multiple of `block_size`.

    8 bits use symmetric rounding to nearest. 4 bits use either that or k-quant, whichever has the smaller squared
    error for this matrix. K-quant is asymmetric: it searches the scale and zero point with the least weighted error.
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
    # The value of largest magnitude becomes -zero: that side has one more step (as in GGML's Q4_0).
    extreme = np.take_along_axis(data, np.abs(data).argmax(axis=1)[:, None], axis=1)
    scales = (extreme / -zero).astype(np.float32)
    safe = np.where(scales == 0, np.float32(1), scales)
    values = np.clip(np.rint(data / safe) + zero, 0, 2 * zero - 1)
    error = float(np.square((values - zero) * scales - data).sum(dtype=np.float64))
    return values.astype(np.uint8), scales[:, 0], None, error


def _k_quant(data: Array) -> _Result:
    with np.errstate(divide="ignore", invalid="ignore"):  # a block of equal values causes a division by zero
        values, scales, zeros = quant_tensor_k_quant_cpu(data, num_bits=4, group_size=data.shape[1])
    values = np.nan_to_num(values).astype(np.uint8)
    scales = scales.astype(np.float32)
    error = float(np.square((values - zeros.astype(np.float32)) * scales - data).sum(dtype=np.float64))
    return values, scales[:, 0], zeros[:, 0], error


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack two 4-bit values into a byte along the last axis, the first in the low half."""
    high: NDArray[np.uint8] = values[..., 1::2] << np.uint8(4)
    return values[..., ::2] | high
