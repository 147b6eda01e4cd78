"""From the logits of one position to one token id.

A `Sampler` takes logits, float32 [vocab], and returns a token id. A `LogitsProcessor` takes the ids so far,
int64 [n], and the logits, float32 [vocab], and returns the logits to sample from, -inf for a forbidden token:
penalties, grammars and the like join here, before the sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.selection import inverse_cdf, require_finite
from hivellm_ort.decoding.warpers import Warper, distribution

__all__ = [
    "FloatArray",
    "IntArray",
    "LogitsProcessor",
    "Sampler",
    "SamplingParams",
    "chosen_by_graph",
    "distribution",
    "greedy",
    "make_sampler",
]

Sampler: TypeAlias = Callable[[FloatArray], int]
LogitsProcessor: TypeAlias = Callable[[IntArray, FloatArray], FloatArray]


def make_sampler(params: SamplingParams) -> Sampler:
    """Return a function from logits to one token id.

    Greedy returns the lowest id among equals. Otherwise each call makes one draw, however few tokens are left, from
    the function's own `numpy.random.default_rng(params.seed)`, by the inverse_cdf of the cumulative distribution in
    order of ids: a row of a batch draws as it would alone. One function serves one row.

    Args:
        params: How to choose; what processors do plays no part.

    Returns:
        The sampler: float32 [vocab] to int. It raises InferenceError if no token can be chosen: the logits
        hold NaN or +inf, or are all -inf.
    """
    if params.temperature == 0:
        return greedy
    rng = np.random.default_rng(params.seed)
    warp = Warper(params)

    def sample(logits: FloatArray) -> int:
        token_ids, weights = warp(logits)
        place = inverse_cdf(weights, rng.random())
        return place if token_ids is None else int(token_ids[place])

    return sample


def greedy(logits: FloatArray) -> int:
    """Return the sampler of temperature 0: the most likely token. A graph may choose it in its place."""
    token_id = int(logits.argmax())  # a NaN counts as the greatest, so it is seen here
    require_finite(logits[token_id])
    return token_id


def chosen_by_graph(token_id: int) -> int:
    """Return the token that a graph gave as the most likely one, in place of `greedy`.

    Of logits with NaN or +inf, which `greedy` refuses, a graph may give a token of the vocabulary as well: that is
    not seen here.

    Args:
        token_id: -1 where it gave none of the vocabulary.

    Raises:
        InferenceError: It gave none.
    """
    if token_id < 0:
        require_finite(np.float32(np.nan))
    return token_id
