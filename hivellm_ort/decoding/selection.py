"""Top-k, sums and inverse sampling over a vocabulary, without sorting it."""

from __future__ import annotations

from math import isfinite

import numpy as np

from hivellm_ort.decoding.arrays import DoubleArray, FloatArray, IntArray
from hivellm_ort.errors import InferenceError

__all__ = ["block_sums", "inverse_cdf", "require_finite", "top_k"]

_ROWS = 64  # rows of the folded scores; the maxima of the columns bound the k-th best from below
_BLOCK = 512  # values per partial sum
_SMALL = 8192  # up to this size values are summed in float64


def require_finite(best: np.float32) -> None:
    """Refuse logits from which no token can be chosen.

    Args:
        best: Their maximum, which is NaN if any of them is.

    Raises:
        InferenceError: It is not finite.
    """
    if not isfinite(best):
        cause = "every token is masked" if best == -np.inf else "the logits hold NaN or infinity"
        raise InferenceError(
            f"no token can be chosen: {cause}; check the grammar and the processors, or the model's precision"
        )


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the indices, ascending, of the scores that reach the k-th best and are above -inf.

    Args:
        scores: float32 [n], no NaN.
        k: From 1; may exceed n.
    """
    columns = scores.size // _ROWS
    bound = np.float32(-np.inf)
    if columns > k:
        # k columns have a score that reaches the k-th best maximum, so at least k scores do.
        maxima = scores[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
        bound = np.partition(maxima, columns - k)[columns - k]
    places = np.flatnonzero(scores >= bound if bound > -np.inf else scores > bound)
    if places.size <= k:
        return places
    found = scores[places]
    return np.compress(found >= np.partition(found, -k)[-k], places)


def block_sums(values: FloatArray) -> DoubleArray:
    """Return the sums of blocks of 512 values, exact to about 1e-7, and their total to 1e-8.

    Up to 8192 values are summed in float64.

    Args:
        values: float32 [n].

    Returns:
        float64 [ceil(n / 512)].
    """
    if values.size <= _SMALL:
        return np.add.reduceat(values, np.arange(0, values.size, _BLOCK), dtype=np.float64)
    sums = np.empty(-(-values.size // _BLOCK))
    blocks = values.size // _BLOCK
    # In float32, which is several times faster.
    sums[:blocks] = np.einsum("ij->i", values[: blocks * _BLOCK].reshape(-1, _BLOCK))
    sums[blocks:] = values[blocks * _BLOCK :].sum()
    return sums


def inverse_cdf(weights: FloatArray, share: float) -> int:
    """Return the first index up to which the weights add up to more than `share` of their total.

    Args:
        weights: float32 [n], none negative and not all 0. The weight at the returned index is above 0.
        share: From 0, below 1.
    """
    # Sum blocks first: a cumulative sum of the whole vocabulary would be the slowest step.
    sums = block_sums(weights).cumsum()
    target = share * sums[-1]  # also after rounding this is below the sum
    block = int(sums.searchsorted(target, side="right"))
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK]
    cumulative = inside.cumsum(dtype=np.float64)
    cumulative += sums[block - 1] if block else 0.0
    place = int(cumulative.searchsorted(target, side="right"))
    # Rounding may put the target past the last weight of the block.
    return start + (place if place < inside.size else int(np.flatnonzero(inside)[-1]))
