"""The draw, greedy decoding, and logits that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from logit_samples import EXAMPLES, LOGITS, WARPING, random_logits

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.sampler import make_sampler
from hivellm_ort.decoding.selection import inverse_cdf
from hivellm_ort.decoding.warpers import distribution
from hivellm_ort.errors import InferenceError


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_equal_seeds_draw_equally(logits: FloatArray, params: SamplingParams) -> None:
    """Two samplers of one seed give the same ids, all from the distribution."""
    first, second = make_sampler(params), make_sampler(params)
    drawn = [first(logits) for _ in range(5)]

    assert drawn == [second(logits) for _ in range(5)]
    assert set(drawn) <= set(distribution(logits, params)[0].tolist())
    assert all(type(token_id) is int for token_id in drawn)


def test_no_seed_draws_differently() -> None:
    """Without a seed two samplers differ."""
    logits = np.zeros(1000, np.float32)
    first, second = (make_sampler(SamplingParams(temperature=1.0)) for _ in range(2))

    assert [first(logits) for _ in range(20)] != [second(logits) for _ in range(20)]


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (3, {}),
        (700, {}),
        (5000, {}),
        (40_000, {}),
        (40_000, {"top_p": 0.9}),
        (40_000, {"top_k": 30, "min_p": 0.1}),
    ],
)
def test_the_draw_inverts_the_cumulative_distribution(size: int, options: dict[str, Any]) -> None:
    """Each draw is the first id whose cumulative probability exceeds the generator's next number."""
    logits = random_logits(size, spread=1.0, seed=7)
    params = SamplingParams(temperature=0.9, seed=11, **options)
    token_ids, probabilities = distribution(logits, params)
    numbers = np.random.default_rng(11).random(200)
    expected = token_ids[np.searchsorted(np.cumsum(probabilities), numbers, side="right")]
    sample = make_sampler(params)

    assert expected.tolist() == [sample(logits) for _ in range(200)]


@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"typical_p": 1e-9}, {"top_k": 50}, {"top_p": 0.5}, {}],
)
def test_every_call_makes_one_draw(options: dict[str, Any]) -> None:
    """What a call draws depends on its logits and on how many calls came before, not on what those were."""
    flat, sure = np.zeros(50, np.float32), np.full(20_000, -np.inf, np.float32)
    sure[7] = 1
    wanted = random_logits(3000, spread=0.1, seed=2)
    params = SamplingParams(temperature=1.0, seed=3, **options)
    expected = []
    for before in ([wanted] * 3, [flat] * 3, [sure, flat, sure]):
        sample = make_sampler(params)
        for logits in before:
            sample(logits)
        expected.append(sample(wanted))

    assert 1 == len(set(expected))


def test_the_draws_follow_the_distribution() -> None:
    """Over many draws every token comes as often as it should."""
    logits = random_logits(30, spread=1.0, seed=4)
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
    token_ids, probabilities = distribution(logits, params)
    sample = make_sampler(params)
    counts = np.bincount([sample(logits) for _ in range(20_000)], minlength=logits.size)

    assert 20_000 == counts[token_ids].sum()
    np.testing.assert_allclose(counts[token_ids] / 20_000, probabilities, atol=0.015)


@pytest.mark.parametrize("number", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"min_p": 0.3}])
def test_the_ends_of_the_draw(
    number: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least and the greatest number give the first and the last token that may be drawn."""

    class Generator:
        def random(self) -> float:
            return number

    logits = random_logits(5000, spread=1.0, seed=6)
    logits[:600] = logits[-600:] = -np.inf
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Generator())
    params = SamplingParams(temperature=1.0, **options)
    token_ids, _ = distribution(logits, params)

    assert token_ids[0 if number == 0 else -1] == make_sampler(params)(logits)


WEIGHTS = hnp.arrays(
    np.float32, st.integers(1, 2000), elements=st.just(0) | st.floats(0.0, 1.0, width=32)
).filter(lambda weights: weights.any())


@settings(max_examples=EXAMPLES)
@given(weights=WEIGHTS, share=st.floats(0, 1, exclude_max=True))
@example(weights=np.array([1, 1.3, 0], np.float32), share=0.0)
def test_a_place_always_has_a_weight(weights: FloatArray, share: float) -> None:
    """Neither rounding nor weights of 0, at the ends too, lead to a place of weight 0."""
    places = np.flatnonzero(weights)

    assert weights[inverse_cdf(weights, share)] > 0
    assert places[0] == inverse_cdf(weights, 0.0)
    assert weights[inverse_cdf(weights, np.nextafter(1.0, 0.0))] > 0


def test_a_sampler_serves_logits_of_any_size_and_leaves_them_alone() -> None:
    """The arrays it keeps fit the logits of each call, which may be read-only."""
    params = SamplingParams(temperature=1.0, top_p=0.9, min_p=0.01, typical_p=0.95, seed=0)
    sample = make_sampler(params)
    for size in (40_000, 10, 20_000, 40_000):
        logits = random_logits(size, spread=1.0, seed=size)
        logits.flags.writeable = False

        assert sample(logits) in distribution(logits, params)[0]


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_greedy_is_the_lowest_of_the_best(logits: FloatArray, params: SamplingParams) -> None:
    """Without a temperature the first of the greatest logits is taken, whatever else is set."""
    params = replace(params, temperature=0.0)
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
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_unusable_logits(values: list[float], expected: str, temperature: float) -> None:
    """Logits from which no token can be chosen are an InferenceError."""
    params = SamplingParams(temperature=temperature, top_p=0.9, top_k=1)
    logits = np.array(values, dtype=np.float32)

    with pytest.raises(InferenceError, match=f"^no token can be chosen: .*{expected}"):
        make_sampler(params)(logits)
    with pytest.raises(InferenceError, match=f"^no token can be chosen: .*{expected}"):
        distribution(logits, params)
