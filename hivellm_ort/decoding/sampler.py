"""From the logits of one position to one token id.

A `Sampler` takes logits, float32 [vocab], and returns a token id. A `LogitsProcessor` takes the ids so far,
int64 [n], and the logits, float32 [vocab], and returns the logits to sample from, -inf for a forbidden token:
penalties, grammars and the like join here, before the sampler.

Definitions and their order are those of transformers' warpers: temperature, top-k (ties with the k-th are
kept), top-p (the smallest set that reaches `top_p`, the crossing token included), softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hivellm_ort.errors import InferenceError

__all__ = [
    "FloatArray",
    "IntArray",
    "LogitsProcessor",
    "Sampler",
    "SamplingParams",
    "distribution",
    "make_sampler",
]

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Sampler: TypeAlias = Callable[[FloatArray], int]
LogitsProcessor: TypeAlias = Callable[[IntArray, FloatArray], FloatArray]

_MIN_TEMPERATURE = 1e-4
_ROWS = 64  # scores are folded into so many rows; the columns' maxima bound the k-th best from below
_BLOCK = 512  # probabilities added up at once


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; the defaults are greedy.

    Args:
        temperature: 0 takes the most likely token; otherwise at least 0.0001, the logits' divisor.
        top_p: 0 to 1: keep the most likely tokens that together reach this probability, at least one.
        top_k: Keep the tokens that score no less than the k-th best; 0 keeps all.
        seed: At least 0: the same draws in every run. None draws differently each time.

    Raises:
        ValueError: If a value is outside its range, not a number or NaN.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        t, p, k, seed = self.temperature, self.top_p, self.top_k, self.seed
        sound = isinstance(t, Real) and (t == 0 or _MIN_TEMPERATURE <= t < np.inf)  # false for NaN
        _require("temperature", t, sound, f"0 (greedy) or a finite number from {_MIN_TEMPERATURE}")
        _require("top_p", p, isinstance(p, Real) and 0 <= p <= 1, "a number from 0 to 1")
        _require("top_k", k, isinstance(k, Integral) and k >= 0, "0 (off) or a positive integer")
        sound = seed is None or (isinstance(seed, Integral) and seed >= 0)
        _require("seed", seed, sound, "None or an integer from 0")


def _require(name: str, value: object, sound: bool, allowed: str) -> None:
    if not sound:
        raise ValueError(f"{name} is {value!r}: it must be {allowed}")


def make_sampler(params: SamplingParams) -> Sampler:
    """Return a function from logits to one token id.

    Greedy returns the lowest id among equals. Otherwise each call makes one draw from the function's own
    `numpy.random.default_rng(params.seed)`, by the inverse of the cumulative distribution in order of ids.

    Args:
        params: How to choose.

    Returns:
        The sampler: float32 [vocab] to int. It raises InferenceError if no token can be chosen: the logits
        hold NaN or +inf, or are all -inf.
    """
    if params.temperature == 0:
        return _greedy
    rng = np.random.default_rng(params.seed)

    def sample(logits: FloatArray) -> int:
        token_ids, probabilities = distribution(logits, params)
        return int(token_ids[_inverse(probabilities, rng.random())])

    return sample


def distribution(logits: FloatArray, params: SamplingParams) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Return the tokens that may be drawn and how likely each is.

    Args:
        logits: float32 [vocab]; -inf marks a forbidden token.
        params: What to keep; its seed plays no part. With temperature 0 only the most likely token is kept.

    Returns:
        Token ids, int64 [n], ascending, and their probabilities, float64 [n], positive and summing to 1.

    Raises:
        InferenceError: If the logits hold NaN or +inf, or are all -inf.

    Source: `TemperatureLogitsWarper`, `TopKLogitsWarper` and `TopPLogitsWarper` of transformers 4.57.
    """
    if params.temperature == 0:
        return np.array([_greedy(logits)], dtype=np.int64), np.ones(1)
    # Masked logits may be the lowest float32: divided they become -inf, which is what they mean.
    with np.errstate(over="ignore", under="ignore"):
        scores = logits / np.float32(params.temperature)
        best = scores.max()
        _require_finite(best)
        token_ids: IntArray | None = None
        if 0 < params.top_k < scores.size:
            token_ids = _top_k(scores, params.top_k)
            scores = scores[token_ids]
        weights = np.exp(scores - best)
    kept = _top_p(scores, weights, params.top_p) if params.top_p < 1 else np.flatnonzero(weights > 0)
    probabilities = weights[kept].astype(np.float64)
    probabilities /= probabilities.sum()
    return kept if token_ids is None else token_ids[kept], probabilities


def _inverse(probabilities: npt.NDArray[np.float64], draw: float) -> int:
    """Return the first place where the cumulative sum of `probabilities` exceeds `draw` times their sum."""
    # Sums of blocks first: adding up a whole vocabulary one by one takes longer than all the rest.
    blocks = np.add.reduceat(probabilities, np.arange(0, probabilities.size, _BLOCK)).cumsum()
    target = draw * blocks[-1]
    # Rounding may put the target at the very end, past the last token.
    block = min(int(blocks.searchsorted(target, side="right")), blocks.size - 1)
    start = block * _BLOCK
    cumulative = probabilities[start : start + _BLOCK].cumsum()
    cumulative += blocks[block - 1] if block else 0.0
    return start + min(int(cumulative.searchsorted(target, side="right")), cumulative.size - 1)


def _greedy(logits: FloatArray) -> int:
    token_id = int(logits.argmax())  # a NaN counts as the greatest, so it is seen here
    _require_finite(logits[token_id])
    return token_id


def _require_finite(best: np.float32) -> None:
    if not isfinite(best):
        cause = "every token is masked" if best == -np.inf else "the logits hold NaN or infinity"
        raise InferenceError(
            f"no token can be chosen: {cause}; check the grammar and the processors, or the model's precision"
        )


def _top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the ids, ascending, of the scores that are no less than the k-th best and above -inf."""
    columns = scores.size // _ROWS
    bound = np.float32(-np.inf)
    if columns > k:
        # k columns have a score that reaches the k-th best maximum, so at least k scores do.
        maxima = scores[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
        bound = np.partition(maxima, columns - k)[columns - k]
    token_ids = np.flatnonzero(scores >= bound if bound > -np.inf else scores > bound)
    if token_ids.size <= k:
        return token_ids
    candidates = scores[token_ids]
    return np.compress(candidates >= np.partition(candidates, -k)[-k], token_ids)


def _top_p(scores: FloatArray, weights: FloatArray, top_p: float) -> IntArray:
    """Return the places, ascending, of the smallest set of scores whose probability reaches `top_p`.

    `weights` are the probabilities, not yet divided by their sum. Like transformers this adds up from the
    least likely token and drops what does not exceed `1 - top_p`, compared in float32 (ten equal tokens and
    top_p 0.9 leave nine). Of equal scores the lower places are dropped first, as by a stable sort.
    """
    total = weights.sum(dtype=np.float64)
    limit = np.float32(1 - top_p)
    # n weights of at most limit / n each cannot exceed the limit together: that spares sorting most of a
    # vocabulary. Half of it, because of rounding.
    places = np.flatnonzero(weights > np.float32(0.5 * limit * total / weights.size))
    dropped = total - weights[places].sum(dtype=np.float64)
    # Sorting the values alone is several times faster than sorting their places.
    order = np.sort(scores[places])
    shares = np.exp(order - order[-1]) / np.float32(total)
    cumulative = shares.cumsum(dtype=np.float64) + dropped / total
    cut = int(np.count_nonzero(cumulative[:-1].astype(np.float32) <= limit))
    kept = scores >= order[cut]
    ties_dropped = cut - int(order.searchsorted(order[cut]))
    if ties_dropped:
        kept[np.flatnonzero(scores == order[cut])[:ties_dropped]] = False
    return np.flatnonzero(kept)
