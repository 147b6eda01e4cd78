"""The sampler against transformers' warpers, and its own draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivellm_ort.decoding.sampler import FloatArray, SamplingParams, distribution, make_sampler
from hivellm_ort.errors import InferenceError

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 10**6]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 2**64),
)
# Whole and half numbers make many ties; masked tokens are -inf or, as in transformers, the lowest float32.
LOGITS = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.sampled_from([-np.inf, float(np.finfo(np.float32).min)])
    | st.integers(-20, 20).map(lambda n: n / 2)
    | st.floats(-30, 30, width=32),
).filter(lambda logits: logits.max() > -100)


def random_logits(size: int, *, spread: float, seed: int) -> FloatArray:
    """Return logits with a bulk and a few likely tokens, as models give them."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(size, dtype=np.float32) * np.float32(spread)
    likely = rng.choice(size, min(size, 40), replace=False)
    logits[likely] += rng.exponential(4.0, likely.size).astype(np.float32)
    return logits


def warped(logits: FloatArray, params: SamplingParams, *, exact: bool) -> np.ndarray[Any, np.dtype[Any]]:
    """Return transformers' probabilities, [vocab]; `exact` computes them in float64 after the temperature."""
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers").generation.logits_process
    scores = warpers.TemperatureLogitsWarper(params.temperature)(None, torch.from_numpy(logits)[None])
    # torch adds up a vocabulary of float32 with an error near 1e-5.
    scores = scores.double() if exact else scores
    if params.top_k:
        scores = warpers.TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = warpers.TopPLogitsWarper(params.top_p)(None, scores)
    return np.asarray(scores.softmax(dim=-1)[0].numpy())


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("top_k", [0, 1, 50, 5000])
@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("size", "spread"), [(50, 2.0), (9000, 0.5), (49152, 2.5)])
def test_equals_the_warpers(temperature: float, top_k: int, top_p: float, size: int, spread: float) -> None:
    """The tokens kept are those of transformers, and their probabilities agree within 1e-6."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = random_logits(size, spread=spread, seed=size)
    logits[::7] = -np.inf
    reference = warped(logits, params, exact=True)

    token_ids, probabilities = distribution(logits, params)

    # Far below float32's precision a probability may be none in one of the two.
    np.testing.assert_array_equal(token_ids[probabilities > 1e-30], np.flatnonzero(reference > 1e-30))
    np.testing.assert_allclose(probabilities, reference[token_ids], rtol=0, atol=1e-6)


@pytest.mark.parametrize("top_k", [0, 2, 5])
@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_ties_are_kept_as_by_the_warpers(levels: int, top_p: float, top_k: int) -> None:
    """Of equal logits as many are kept: all at the k-th place, what reaches top_p at its edge."""
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p)
    for size in (10, 1000):
        logits = np.random.default_rng(size).integers(0, levels, size).astype(np.float32)
        expected = logits[np.flatnonzero(warped(logits, params, exact=False))]
        token_ids, _ = distribution(logits, params)

        # Which of them is left to torch.sort, which keeps no order among equals.
        assert sorted(expected) == sorted(logits[token_ids])


def test_the_last_of_equal_logits_are_kept() -> None:
    """At the edge of top_p the tokens of the higher ids stay, as by a stable sort."""
    expected = [1, 4, 6, 7, 8]
    logits = np.array([0, 9, 0, 5, 5, 0, 5, 5, 5, 0], dtype=np.float32)

    assert expected == distribution(logits, SamplingParams(temperature=10.0, top_p=0.56))[0].tolist()


@given(logits=LOGITS, params=PARAMS)
def test_what_a_distribution_is(logits: FloatArray, params: SamplingParams) -> None:
    """Ids ascend, probabilities are positive and sum to 1, nothing masked is kept, and the best token is."""
    before = logits.copy()
    token_ids, probabilities = distribution(logits, params)

    assert (np.int64, np.float64) == (token_ids.dtype, probabilities.dtype)
    assert (np.diff(token_ids) > 0).all()
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(), 1.0)
    assert (logits[token_ids] > -1e30).all()
    assert logits.max() == logits[token_ids].max()
    assert before.tolist() == logits.tolist()


@given(logits=LOGITS, params=PARAMS)
def test_top_k_and_top_p_by_definition(logits: FloatArray, params: SamplingParams) -> None:
    """No token that is left out scores more than one that is kept, and no smaller set reaches top_p."""
    token_ids, probabilities = distribution(logits, params)
    wide, shares = distribution(
        logits, SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=1.0)
    )
    with np.errstate(over="ignore"):
        scores = logits / np.float32(params.temperature)
    left_out = np.setdiff1d(wide, token_ids)
    kept_share = shares[np.isin(wide, token_ids)].sum()

    assert left_out.size == 0 or scores[left_out].max() <= scores[token_ids].min()
    assert kept_share >= params.top_p - 1e-6
    assert token_ids.size == 1 or kept_share * (1 - probabilities.min()) <= params.top_p + 1e-6
    if params.top_k:
        assert (scores[wide] >= np.sort(scores)[-min(params.top_k, scores.size)]).all()


@given(logits=LOGITS, params=PARAMS)
def test_equal_seeds_draw_equally(logits: FloatArray, params: SamplingParams) -> None:
    """Two samplers of one seed give the same ids, all from the distribution."""
    first, second = make_sampler(params), make_sampler(params)
    drawn = [first(logits) for _ in range(5)]

    assert drawn == [second(logits) for _ in range(5)]
    assert set(drawn) <= set(distribution(logits, params)[0].tolist())


@pytest.mark.parametrize("size", [3, 700, 5000])
def test_the_draw_inverts_the_cumulative_distribution(size: int) -> None:
    """Each draw is the first id whose cumulative probability exceeds the generator's next number."""
    logits = random_logits(size, spread=1.0, seed=7)
    params = SamplingParams(temperature=0.9, seed=11)
    token_ids, probabilities = distribution(logits, params)
    numbers = np.random.default_rng(11).random(200)
    expected = token_ids[np.searchsorted(np.cumsum(probabilities), numbers, side="right")]
    sample = make_sampler(params)

    assert expected.tolist() == [sample(logits) for _ in range(200)]


@given(logits=LOGITS)
def test_greedy_is_the_lowest_of_the_best(logits: FloatArray) -> None:
    """Without a temperature the first of the greatest logits is taken, whatever else is set."""
    params = SamplingParams(top_k=3, top_p=0.5, seed=1)
    expected = logits.tolist().index(logits.max())

    assert expected == make_sampler(params)(logits)
    assert [expected] == distribution(logits, params)[0].tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-np.inf, -np.inf], "every token is masked"),
        ([0.0, np.nan], "NaN or infinity"),
        ([0.0, np.inf], "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_unusable_logits(values: list[float], expected: str, temperature: float) -> None:
    """Logits from which no token can be chosen are an InferenceError."""
    sample = make_sampler(SamplingParams(temperature=temperature, top_p=0.9))

    with pytest.raises(InferenceError, match=f"^no token can be chosen: .*{expected}"):
        sample(np.array(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"temperature": -0.1},
            r"^temperature is -0.1: it must be 0 \(greedy\) or a finite number from 0.0001$",
        ),
        ({"temperature": 1e-5}, "^temperature is 1e-05"),
        ({"temperature": float("nan")}, "^temperature is nan"),
        ({"temperature": float("inf")}, "^temperature is inf"),
        ({"temperature": "0.7"}, "^temperature is '0.7'"),
        ({"top_p": -0.1}, "^top_p is -0.1: it must be a number from 0 to 1$"),
        ({"top_p": 1.1}, "^top_p is 1.1"),
        ({"top_p": float("nan")}, "^top_p is nan"),
        ({"top_k": -1}, r"^top_k is -1: it must be 0 \(off\) or a positive integer$"),
        ({"top_k": 2.5}, "^top_k is 2.5"),
        ({"seed": -1}, "^seed is -1: it must be None or an integer from 0$"),
        ({"seed": 0.5}, "^seed is 0.5"),
    ],
)
def test_params_outside_their_range(options: dict[str, Any], expected: str) -> None:
    """A value outside its range is a ValueError with name, value and range."""
    with pytest.raises(ValueError, match=expected):
        SamplingParams(**options)
