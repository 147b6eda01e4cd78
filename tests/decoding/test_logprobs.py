"""Log probabilities against a sorted vocabulary in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_samples import EXAMPLES, LOGITS, random_logits

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.logprobs import TokenLogprob, token_logprob
from hivellm_ort.errors import InferenceError


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, count=st.integers(0, 20), data=st.data())
def test_equals_log_softmax(logits: FloatArray, count: int, data: st.DataObject) -> None:
    """The token's log probability and the best ones are those of the sorted log softmax."""
    token_id = data.draw(st.integers(0, logits.size - 1))
    before = logits.copy()
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    best = [i for i in np.lexsort((np.arange(logits.size), -logits)) if values[i] > -np.inf][:count]

    actual = token_logprob(logits, token_id, count)

    assert token_id == actual.token_id
    np.testing.assert_allclose(values[token_id], actual.logprob, atol=1e-5, rtol=1e-6)
    assert best == [place for place, _ in actual.top]
    np.testing.assert_allclose(values[best], [logprob for _, logprob in actual.top], atol=1e-5, rtol=1e-6)
    assert before.tobytes() == logits.tobytes()


@pytest.mark.parametrize("offset", [-1e6, -300.0, 0.0, 300.0, 1e6])
def test_large_logits_are_no_trouble(offset: float) -> None:
    """Nothing overflows, nothing underflows, and read-only logits of a vocabulary are taken."""
    logits = random_logits(150_000, spread=2.0) + np.float32(offset)
    logits.flags.writeable = False
    actual = token_logprob(logits, int(logits.argmax()), 20)

    assert actual.logprob == actual.top[0][1] <= 0
    assert 20 == len(actual.top)
    assert all(isinstance(place, int) and isinstance(value, float) for place, value in actual.top)


def test_an_impossible_token() -> None:
    """A forbidden token has the log probability -inf and is not among the best."""
    logits = np.array([0, -np.inf, 0], np.float32)
    half = float(np.log(0.5))

    assert TokenLogprob(1, -np.inf, ((0, half), (2, half))) == token_logprob(logits, 1, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unusable_logits(value: float) -> None:
    """Logits that hold NaN or infinity are an InferenceError."""
    with pytest.raises(InferenceError, match="NaN or infinity"):
        token_logprob(np.array([0, value], np.float32), 0, 1)
