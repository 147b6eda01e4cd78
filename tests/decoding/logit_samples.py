"""Logits and parameters for the tests of this folder."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.params import SamplingParams

EXAMPLES = int(os.environ.get("HIVELLM_FUZZ_EXAMPLES", "50"))

# Whole and half numbers make many ties; masked tokens are -inf or, as in transformers, the lowest float32.
LOGITS = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.sampled_from([-np.inf, float(np.finfo(np.float32).min)])
    | st.integers(-20, 20).map(lambda n: n / 2)
    | st.floats(-30, 30, width=32),
).filter(lambda logits: logits.max() > -100)

WARPING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 10**6]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    typical_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 2**64),
)


def random_logits(size: int, *, spread: float, seed: int = 0, likely: int = 40) -> FloatArray:
    """Return logits with a bulk and a few likely tokens, as models give them."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(size, dtype=np.float32) * np.float32(spread)
    places = rng.choice(size, min(size, likely), replace=False)
    logits[places] += rng.exponential(4.0, places.size).astype(np.float32)
    return logits
