"""Temperature, top-k, top-p, min-p and typical-p: which tokens may be drawn, and how likely each is.

Definitions and their order are those of transformers' warpers: temperature, top-k (ties with the k-th are kept),
top-p (the smallest set that reaches `top_p`, the crossing token included), min-p, typical-p, softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hivellm_ort.decoding.arrays import DoubleArray, FloatArray, IntArray
from hivellm_ort.decoding.nucleus import Tail
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.selection import block_sums, require_finite, top_k

__all__ = ["Warper", "distribution"]

_FEW, _SAMPLE = 16, 1024  # copy tokens out if fewer than 1 in _FEW are left, judged by _SAMPLE of them
_NORMAL = np.float32(87)  # the exponential below -87 is a subnormal float32, which is slow
_FAINT = np.float32(32)  # a million tokens so far below the best one have 1e-8 of its probability


def distribution(logits: FloatArray, params: SamplingParams) -> tuple[IntArray, DoubleArray]:
    """Return the tokens that may be drawn and how likely each is.

    Args:
        logits: float32 [vocab]; -inf marks a forbidden token.
        params: The parameters; seed and those of processors are not used. With temperature 0 only the most likely
            token is kept.

    Returns:
        Token ids, int64 [n], ascending, and their probabilities, float64 [n], positive and summing to 1.

    Raises:
        InferenceError: The logits hold NaN or +inf, or are all -inf.
    """
    if params.temperature == 0:
        best = logits.argmax()  # argmax returns a NaN, so it is noticed here
        require_finite(logits[best])
        return np.array([best], np.int64), np.ones(1)
    ids, weights = Warper(params)(logits)
    places = np.flatnonzero(weights)
    probabilities = weights[places].astype(np.float64)
    probabilities /= probabilities.sum()
    return places if ids is None else ids[places], probabilities


@dataclass
class _Pool:
    """The remaining tokens: logits, weights relative to the best token, and ids."""

    logits: FloatArray
    weights: FloatArray
    ids: IntArray | None = None

    def narrow(self, places: IntArray) -> None:
        """Keep only the tokens at `places`."""
        self.ids = places if self.ids is None else self.ids[places]
        self.logits, self.weights = self.logits[places], self.weights[places]


class Warper:
    """Turns the logits of a row into the weights of the tokens that may be drawn.

    It reuses its arrays, because allocating arrays of a vocabulary's size costs more than the computation.

    Args:
        params: The parameters. The temperature is not 0.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._temperature = np.float32(params.temperature)
        self._limit = np.float32(1 - params.top_p)
        # Top-p and min-p drop faint tokens anyway, and their sum is negligible.
        self._reach = _FAINT if self._limit > 1e-6 or params.min_p > 1e-6 else _NORMAL
        self._best = np.float32(0)
        self._weights = self._spare = np.empty(0, np.float32)
        self._mask = np.empty(0, np.bool_)

    def __call__(self, logits: FloatArray) -> tuple[IntArray | None, FloatArray]:
        """Return token ids and their weights.

        Args:
            logits: float32 [vocab]; -inf marks a forbidden token.

        Returns:
            Ids, int64 [n], ascending, or None for the whole vocabulary; and weights, float32 [n], valid until the
            next call: the probabilities times a common factor, 0 for a token that may not be drawn.

        Raises:
            InferenceError: The logits hold NaN or +inf, or are all -inf.
        """
        if self._mask.size != logits.size:
            self._weights, self._spare = (np.empty(logits.size, np.float32) for _ in range(2))
            self._mask = np.empty(logits.size, np.bool_)
        # Masked logits may be the lowest float32: divided they become -inf, which is what they mean.
        with np.errstate(over="ignore", under="ignore"):
            pool = self._weighed(logits)
            if self._limit > 0:
                self._keep_top_p(pool)
            if self._params.min_p > 0:
                least = np.float32(self._params.min_p) * pool.weights.max()
                pool.weights *= np.greater_equal(pool.weights, least, out=self._mask[: pool.weights.size])
            if self._params.typical_p < 1:
                self._keep_typical(pool)
        return pool.ids, pool.weights

    def _weighed(self, logits: FloatArray) -> _Pool:
        pool = _Pool(logits, logits if self._temperature == 1 else self._scaled(logits, self._weights))
        self._best = pool.weights.max()
        require_finite(self._best)
        if 0 < self._params.top_k < logits.size:
            pool.narrow(top_k(pool.weights, self._params.top_k))
        near = self._few(pool.weights, self._best - self._reach)
        if near is not None:
            pool.narrow(near)
        self._weigh(pool)
        return pool

    def _scaled(self, logits: FloatArray, out: FloatArray | None = None) -> FloatArray:
        return np.divide(logits, self._temperature, out=out)

    def _weigh(self, pool: _Pool) -> None:
        """Turn the scores in `weights` into weights."""
        pool.weights = np.subtract(pool.weights, self._best, out=self._weights[: pool.weights.size])
        np.exp(pool.weights, out=pool.weights)

    def _keep_top_p(self, pool: _Pool) -> None:
        whole, below = float(block_sums(pool.weights).sum()), 0.0
        # n weights of at most limit / n each cannot exceed the limit together; half of it, because of rounding.
        likely = self._few(pool.weights, np.float32(0.5 * float(self._limit) * whole / pool.weights.size))
        if likely is not None:
            pool.narrow(likely)
            below = 1 - float(pool.weights.sum(dtype=np.float64)) / whole
        tail = Tail(self._limit, whole, below, rising=True)
        self._drop(pool, tail, pool.weights, lambda places: self._scaled(pool.logits[places]))

    def _keep_typical(self, pool: _Pool) -> None:
        possible = pool.weights > 0
        if not possible.all():
            pool.narrow(np.flatnonzero(possible))
        whole = float(block_sums(pool.weights).sum())
        keys = self._scaled(pool.logits, self._spare[: pool.logits.size])
        # Surprise is a constant minus the score, so both have the same distance from their mean.
        np.subtract(keys, self._best, out=keys)
        np.subtract(keys, np.float32(block_sums(keys * pool.weights).sum() / whole), out=keys)
        np.abs(keys, out=keys)
        np.negative(keys, out=keys)
        tail = Tail(np.float32(1 - self._params.typical_p), whole, 0.0, rising=False)
        self._drop(pool, tail, keys, keys.take)

    def _drop(
        self, pool: _Pool, tail: Tail, keys: FloatArray, exact: Callable[[IntArray], FloatArray]
    ) -> None:
        mask = self._mask[: keys.size]
        if not tail.drop(pool.weights, keys, exact, mask):
            self._scaled(pool.logits, pool.weights)
            self._weigh(pool)
            tail.drop(pool.weights, keys, exact, mask, guess=False)

    def _few(self, values: FloatArray, least: np.float32) -> IntArray | None:
        """Return the indices of the values that reach `least`, or None if a sample shows that they are many."""
        sample = values[:: values.size // _SAMPLE + 1]
        if np.count_nonzero(sample >= least) * _FEW > sample.size:
            return None
        return np.flatnonzero(np.greater_equal(values, least, out=self._mask[: values.size]))
