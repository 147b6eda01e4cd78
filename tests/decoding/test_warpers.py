"""Temperature, top-k, top-p, min-p and typical-p against transformers, and by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from logit_samples import EXAMPLES, LOGITS, WARPING, random_logits
from support.extras import requires_export

from hivellm_ort.decoding import nucleus
from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.warpers import distribution

EDGE = 1e-6  # rounding may move what lies so near to a limit to its other side


def warped(logits: FloatArray, params: SamplingParams, *, exact: bool = True) -> npt.NDArray[Any]:
    """Return transformers' probabilities, [vocab]; `exact` computes them in float64 after the temperature."""
    requires_export()
    import torch
    import transformers.generation.logits_process as warpers

    scores = warpers.TemperatureLogitsWarper(float(params.temperature))(None, torch.from_numpy(logits)[None])
    # torch adds up a vocabulary of float32 with an error near 1e-5.
    scores = scores.double() if exact else scores
    if params.top_k:
        scores = warpers.TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = warpers.TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = warpers.MinPLogitsWarper(params.min_p)(None, scores)
    if params.typical_p < 1:
        scores = warpers.TypicalLogitsWarper(params.typical_p)(None, scores)
    return np.asarray(scores.softmax(dim=-1)[0].numpy())


def nearby(params: SamplingParams) -> Iterator[SamplingParams]:
    """Yield the parameters, and those that differ by rounding only."""
    yield params
    for top_p, min_p, typical_p in product((-EDGE, 0, EDGE), repeat=3):
        yield replace(
            params,
            top_p=min(max(params.top_p + top_p, 0.0), 1.0) if params.top_p < 1 else 1.0,
            min_p=min(params.min_p * (1 + min_p), 1.0),
            typical_p=min(params.typical_p + typical_p, 1 - EDGE) if params.typical_p < 1 else 1.0,
        )


def same(logits: FloatArray, params: SamplingParams, reference: npt.NDArray[Any]) -> bool:
    """Tell whether as many tokens of each logit are kept, and the probabilities agree within 1e-6.

    Which ones of equal tokens are kept is left to torch.sort, which keeps no order among equals.
    """
    token_ids, probabilities = distribution(logits, params)
    token_ids, probabilities = token_ids[probabilities > 1e-30], probabilities[probabilities > 1e-30]
    expected = np.flatnonzero(reference > 1e-30)
    return sorted(logits[expected]) == sorted(logits[token_ids]) and np.allclose(
        np.sort(reference[expected]), np.sort(probabilities), rtol=0, atol=1e-6
    )


@settings(max_examples=2 * EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_equals_the_warpers(logits: FloatArray, params: SamplingParams) -> None:
    """What is kept, and how likely it is, is what transformers' warpers say, whatever is combined."""
    assert any(same(logits, params, warped(logits, one)) for one in nearby(params))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 50, 5000])
@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("size", "spread", "likely"), [(9000, 0.5, 40), (49152, 2.5, 40), (151936, 0.1, 0)])
def test_equals_the_warpers_on_a_vocabulary(
    temperature: float, top_k: int, top_p: float, size: int, spread: float, likely: int
) -> None:
    """The tokens kept of a large vocabulary are those of transformers, and their probabilities agree within 1e-6."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = random_logits(size, spread=spread, seed=size, likely=likely)
    logits[::7] = -np.inf
    reference = warped(logits, params)

    token_ids, probabilities = distribution(logits, params)

    # Far below float32's precision a probability may be none in one of the two.
    np.testing.assert_array_equal(np.flatnonzero(reference > 1e-30), token_ids[probabilities > 1e-30])
    np.testing.assert_allclose(reference[token_ids], probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.05},
        {"typical_p": 0.2},
        {"typical_p": 0.9},
        {"top_p": 0.9, "min_p": 0.02},
        {"top_k": 300, "typical_p": 0.5},
        {"top_k": 1000, "top_p": 0.95, "min_p": 0.001, "typical_p": 0.9},
    ],
)
@pytest.mark.parametrize(("spread", "likely"), [(0.1, 0), (1.5, 0), (2.5, 40)])
def test_min_p_and_typical_p_on_a_vocabulary(options: dict[str, Any], spread: float, likely: int) -> None:
    """So are those kept by the rarer warpers."""
    params = SamplingParams(temperature=0.8, **options)
    logits = random_logits(100_000, spread=spread, seed=3, likely=likely)

    assert any(same(logits, params, warped(logits, one)) for one in nearby(params))


@pytest.mark.parametrize("top_k", [0, 2, 5])
@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_ties_are_kept_as_by_the_warpers(levels: int, top_p: float, top_k: int) -> None:
    """Of equal logits as many are kept: all at the k-th place, what reaches top_p at its edge."""
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p)
    for size in (10, 1000):
        logits = np.random.default_rng(size).integers(0, levels, size).astype(np.float32)

        assert same(logits, params, warped(logits, params, exact=False))


def test_the_last_of_equal_logits_are_kept() -> None:
    """At the edge of top_p the tokens of the higher ids stay, as by a stable sort."""
    expected = [1, 4, 6, 7, 8]
    logits = np.array([0, 9, 0, 5, 5, 0, 5, 5, 5, 0], dtype=np.float32)

    assert expected == distribution(logits, SamplingParams(temperature=10.0, top_p=0.56))[0].tolist()


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_what_a_distribution_is(logits: FloatArray, params: SamplingParams) -> None:
    """Ids ascend, probabilities are positive and sum to 1, nothing masked is kept, and the logits stay."""
    before = logits.copy()
    token_ids, probabilities = distribution(logits, params)

    assert (np.int64, np.float64) == (token_ids.dtype, probabilities.dtype)
    assert (np.diff(token_ids) > 0).all()
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(), 1.0)
    assert (logits[token_ids] > -1e30).all()
    assert before.tobytes() == logits.tobytes()
    order = np.argsort(logits[token_ids])
    assert (np.diff(probabilities[order]) >= 0).all()


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_the_best_token_is_kept_by_all_but_typical_p(logits: FloatArray, params: SamplingParams) -> None:
    """Only typical-p may leave the most likely token out; typical-p alone leaves no gap in the scores."""
    token_ids, _ = distribution(logits, replace(params, typical_p=1.0))
    assert logits.max() == logits[token_ids].max()

    typical, _ = distribution(logits, params)
    low, high = logits[typical].min(), logits[typical].max()
    assert set(typical) == {int(i) for i in token_ids if low <= logits[i] <= high}


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
@example(logits=np.zeros(40_000, np.float32), params=SamplingParams(temperature=1, top_p=0.4))
def test_top_k_and_top_p_by_definition(logits: FloatArray, params: SamplingParams) -> None:
    """No token that is left out scores more than one that is kept, and no smaller set reaches top_p."""
    params = replace(params, min_p=0.0, typical_p=1.0)
    token_ids, probabilities = distribution(logits, params)
    wide, shares = distribution(logits, replace(params, top_p=1.0))
    with np.errstate(over="ignore"):
        scores = logits / np.float32(params.temperature)
    left_out = np.setdiff1d(wide, token_ids)
    kept_share = shares[np.isin(wide, token_ids)].sum()

    assert left_out.size == 0 or scores[left_out].max() <= scores[token_ids].min()
    assert kept_share >= params.top_p - 1e-6
    assert token_ids.size == 1 or kept_share * (1 - probabilities.min()) <= params.top_p + 1e-6
    if params.top_k:
        assert (scores[wide] >= np.sort(scores)[-min(params.top_k, scores.size)]).all()


@settings(max_examples=EXAMPLES)
@given(logits=LOGITS, params=WARPING)
def test_stricter_parameters_keep_less(logits: FloatArray, params: SamplingParams) -> None:
    """What a smaller top_k or top_p or a larger min_p keeps, the others keep too."""
    params = replace(params, typical_p=1.0)
    kept = set(distribution(logits, params)[0].tolist())
    for looser in (
        replace(params, top_k=2 * params.top_k),
        replace(params, top_p=1.0),
        replace(params, min_p=params.min_p / 2),
    ):
        assert kept <= set(distribution(logits, looser)[0].tolist())


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_p": 0.3}, {"top_p": 0.9999}, {"typical_p": 0.6}])
@pytest.mark.parametrize(("spread", "likely"), [(0.0, 0), (0.1, 0), (1.0, 0), (3.0, 0), (2.5, 40)])
@pytest.mark.parametrize("sample", [64, 8192])
@pytest.mark.parametrize("errors", [100.0, 2.5, -1.0])
def test_guesses_change_nothing(
    options: dict[str, Any],
    spread: float,
    likely: int,
    errors: float,
    sample: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vocabulary gives the same as when all of it is sorted, whether a sample guesses well or badly."""
    params = SamplingParams(temperature=0.7, **options)
    logits = random_logits(60_000, spread=spread, seed=5, likely=likely)
    monkeypatch.setattr(nucleus, "_SAMPLE", logits.size)
    expected = distribution(logits, params)
    monkeypatch.setattr(nucleus, "_SAMPLE", sample)
    monkeypatch.setattr(nucleus, "_ERRORS", errors)
    monkeypatch.setattr(nucleus, "_SLACK", 4 if errors > 0 else 1)

    actual = distribution(logits, params)

    # Sums of a vocabulary are exact to about 1e-8.
    shares = [np.bincount(*one, minlength=logits.size) for one in (expected, actual)]
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-7)
