"""Log probabilities of a chosen token and of the best ones."""

from __future__ import annotations

from math import log

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.selection import block_sums, require_finite, top_k
from hivellm_ort.result import TokenLogprob

__all__ = ["log_normaliser", "token_logprob"]


def token_logprob(logits: FloatArray, token_id: int, count: int) -> TokenLogprob:
    """Return the log probability of a token and those of the best tokens.

    They are of the model's own distribution if `logits` are the model's own, before processors and temperature.

    Args:
        logits: float32 [vocab]; -inf for an impossible token.
        token_id: The chosen token.
        count: How many of the best to tell; fewer if fewer are possible.

    Raises:
        InferenceError: If the logits hold NaN or +inf, or are all -inf.
    """
    log_sum = log_normaliser(logits)
    top = []
    if count:
        places = top_k(logits, count)  # of equals with the last one it may hold more
        order = np.argsort(-logits[places], kind="stable")[:count]
        top = [(int(place), float(logits[place]) - log_sum) for place in places[order]]
    return TokenLogprob(token_id, float(logits[token_id]) - log_sum, tuple(top))


def log_normaliser(logits: FloatArray) -> float:
    """Return what to subtract from a logit, float32 [vocab], for the log probability of its token.

    Raises:
        InferenceError: If the logits hold NaN or +inf, or are all -inf.
    """
    best = logits.max()
    require_finite(best)
    with np.errstate(under="ignore"):
        return float(best) + log(block_sums(np.exp(logits - best)).sum())
