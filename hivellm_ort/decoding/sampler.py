"""Samplers: from the logits of one position to a token id.

A `Sampler` takes logits, float32 [vocab], and returns a token id. A `LogitsProcessor` takes the ids so far,
int64 [n], and the logits, float32 [vocab], and returns the logits to sample from, -inf for a forbidden token:
penalties and grammars run here, before the sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.selection import inverse_cdf, require_finite
from hivellm_ort.decoding.warpers import Warper

__all__ = ["LogitsProcessor", "Sampler", "chosen_by_graph", "greedy", "make_sampler"]

Sampler: TypeAlias = Callable[[FloatArray], int]
LogitsProcessor: TypeAlias = Callable[[IntArray, FloatArray], FloatArray]


def make_sampler(params: SamplingParams) -> Sampler:
    """Return a function from logits to one token id.

    Greedy returns the lowest id among equals. Otherwise each call makes exactly one draw from its own
    `numpy.random.default_rng(params.seed)`, by the inverse of the cumulative distribution in order of ids. So a row
    of a batch draws as it would alone. Use one function per row.

    Args:
        params: The parameters; those of processors are not used here.

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
    """Return the most likely token: the sampler of temperature 0. A graph may do this instead."""
    token_id = int(logits.argmax())  # argmax returns a NaN, so it is noticed here
    require_finite(logits[token_id])
    return token_id


def chosen_by_graph(token_id: int) -> int:
    """Return the argmax that a graph computed in place of `greedy`.

    A graph may also return a valid token for logits with NaN or +inf, which `greedy` refuses. That goes unnoticed
    here.

    Args:
        token_id: The token; -1 if the graph found none.

    Raises:
        InferenceError: It is -1.
    """
    if token_id < 0:
        require_finite(np.float32(np.nan))
    return token_id
