"""Biases, penalties and bans against transformers, vLLM's definitions, and from call to call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_samples import EXAMPLES, random_logits
from support.extras import requires_export

from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import make_processors, user_processors
from hivellm_ort.decoding.sampler import LogitsProcessor, make_sampler
from hivellm_ort.decoding.warpers import distribution
from hivellm_ort.errors import InferenceError, OptionError, OptionTypeError

VOCABULARY = 30
EOS = (2, 29)
IDS = st.integers(0, VOCABULARY - 1)
# Few different tokens, so that runs of them come again.
SEQUENCES = st.lists(st.integers(0, 4), min_size=5, max_size=40)
BIASES = st.dictionaries(IDS, st.floats(-100, 100, width=32) | st.just(-np.inf), max_size=5)
PROCESSING = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    no_repeat_ngram_size=st.integers(0, 5),
    logit_bias=BIASES,
    min_tokens=st.integers(0, 10),
)


def processor(params: SamplingParams, prompt_length: int = 0) -> LogitsProcessor:
    """Return the processor of `params`, which is there; the tokens are the letters."""
    letters = [bytes([ord("a") + token_id]) for token_id in range(26)]
    made = make_processors(
        params, prompt_length=prompt_length, eos_token_ids=EOS, token_texts=lambda: TokenTexts(letters)
    )
    assert made is not None
    return made


def ids(*token_ids: int) -> IntArray:
    """Return token ids as the loop gives them."""
    return np.array(token_ids, np.int64)


def transformers_processors(params: SamplingParams, prompt_length: int) -> Any:
    """Return the processors that transformers' own generate makes of the same parameters."""
    requires_export()
    import torch
    import transformers

    config = transformers.GenerationConfig(
        repetition_penalty=float(params.repetition_penalty),
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        sequence_bias={(token_id,): bias for token_id, bias in params.logit_bias.items()} or None,
        min_new_tokens=params.min_tokens or None,
        eos_token_id=list(EOS),
    )
    if params.temperature:
        config.do_sample = True
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
            setattr(config, name, getattr(params, name))
    config._eos_token_tensor = torch.tensor(EOS)
    return transformers.GenerationMixin()._get_logits_processor(
        config, input_ids_seq_length=prompt_length, device="cpu"
    )


@settings(max_examples=2 * EXAMPLES)
@given(params=PROCESSING, token_ids=SEQUENCES, prompt_length=st.integers(0, 5), seed=st.integers(0, 99))
def test_equals_transformers(
    params: SamplingParams, token_ids: list[int], prompt_length: int, seed: int
) -> None:
    """Whatever is combined, the logits are those of transformers, in the order of its own generate."""
    logits = random_logits(VOCABULARY, spread=3.0, seed=seed)
    reference = transformers_processors(params, prompt_length)
    requires_export()
    import torch

    expected = reference(torch.tensor([token_ids]), torch.from_numpy(logits)[None])[0].numpy()
    process = make_processors(params, prompt_length=prompt_length, eos_token_ids=EOS)

    actual = logits if process is None else process(np.array(token_ids, np.int64), logits)

    assert np.float32 == actual.dtype
    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize("seed", range(20))
def test_processors_and_warpers_together_equal_transformers(seed: int) -> None:
    """From logits to probabilities everything comes in the order of transformers' own generate."""
    requires_export()
    import torch

    params = SamplingParams(
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.95,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        logit_bias={3: 4.0, 7: -np.inf},
        min_tokens=9,
    )
    rng = np.random.default_rng(seed)
    token_ids, logits = rng.integers(0, 6, 12), random_logits(VOCABULARY, spread=2.0, seed=seed)
    reference = transformers_processors(params, prompt_length=5)
    scores = reference(torch.from_numpy(token_ids)[None], torch.from_numpy(logits)[None])
    expected = scores.softmax(dim=-1)[0].numpy()

    kept, probabilities = distribution(processor(params, prompt_length=5)(token_ids, logits), params)

    np.testing.assert_array_equal(np.flatnonzero(expected), kept)
    np.testing.assert_allclose(expected[kept], probabilities, atol=1e-6)


@given(
    token_ids=SEQUENCES,
    prompt_length=st.integers(0, 5),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.sampled_from([1.0, 1.5]),
)
def test_presence_and_frequency_count_what_was_generated(
    token_ids: list[int], prompt_length: int, presence: float, frequency: float, repetition: float
) -> None:
    """As in vLLM: after the repetition penalty, each generated token pays once, and once more for every time."""
    params = SamplingParams(
        presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition
    )
    logits = random_logits(VOCABULARY, spread=3.0)
    expected = logits.astype(np.float64)
    for token_id in set(token_ids):
        expected[token_id] *= repetition if expected[token_id] < 0 else 1 / repetition
        count = token_ids[prompt_length:].count(token_id)
        expected[token_id] -= count * frequency + (count > 0) * presence
    process = make_processors(params, prompt_length=prompt_length, eos_token_ids=EOS)

    actual = logits if process is None else process(np.array(token_ids, np.int64), logits)

    np.testing.assert_allclose(expected, actual, rtol=1e-5, atol=1e-5)


@settings(max_examples=EXAMPLES)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 4), max_size=3)), max_size=10),
    prompt=SEQUENCES,
)
def test_calls_do_not_depend_on_those_before(steps: list[tuple[int, list[int]]], prompt: list[int]) -> None:
    """A processor that has counted other tokens, which were taken back, gives what a fresh one gives."""
    params = SamplingParams(
        repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.25, min_tokens=3
    )
    process, token_ids = processor(params, len(prompt)), prompt
    logits = random_logits(VOCABULARY, spread=3.0)
    for taken_back, added in steps:
        token_ids = prompt + token_ids[len(prompt) : len(token_ids) - taken_back] + added
        expected = processor(params, len(prompt))(np.array(token_ids, np.int64), logits)

        np.testing.assert_array_equal(expected, process(np.array(token_ids, np.int64), logits))


@settings(max_examples=EXAMPLES)
@given(params=PROCESSING, token_ids=SEQUENCES)
def test_nothing_is_written_into_what_is_given(params: SamplingParams, token_ids: list[int]) -> None:
    """Logits and token ids may be read-only; the result is another array."""
    process = make_processors(params, prompt_length=3, eos_token_ids=EOS)
    logits, given_ids = random_logits(VOCABULARY, spread=3.0), np.array(token_ids, np.int64)
    logits.flags.writeable = given_ids.flags.writeable = False
    if process is not None:
        assert not np.shares_memory(logits, process(given_ids, logits))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "typical_p": 0.9,
            "seed": 1,
            "logprobs": 3,
        },
    ],
)
def test_there_is_none_where_nothing_is_to_be_done(options: dict[str, Any]) -> None:
    """Parameters that are off make no processor, nor do those of the sampler."""
    assert make_processors(SamplingParams(**options), prompt_length=3, eos_token_ids=EOS) is None


def test_each_alone() -> None:
    """What each parameter does to logits of 1 and -1."""
    logits = np.array([1, -1] * 15, np.float32)
    seen = ids(0, 1, 5, 0, 1)

    def changed(**options: Any) -> dict[int, float]:
        after = processor(SamplingParams(**options), prompt_length=3)(seen, logits)
        return {int(i): float(after[i]) for i in np.flatnonzero(after != logits)}

    assert {3: 1.5, 4: -np.inf, 6: -99.0} == changed(logit_bias={3: 2.5, 4: -np.inf, 6: -100})
    assert {0: 0.5, 1: -2.0, 5: -2.0} == changed(repetition_penalty=2.0)
    assert {0: 0.5, 1: -1.5} == changed(presence_penalty=0.5)
    assert {0: 0.75, 1: -1.25} == changed(frequency_penalty=0.25)
    assert {5: -np.inf} == changed(no_repeat_ngram_size=3)
    assert {0: -np.inf, 1: -np.inf, 5: -np.inf} == changed(no_repeat_ngram_size=1)
    assert {11: -np.inf, 13: -np.inf, 15: -np.inf} == changed(bad_words=["abl", "n", "bp", "fabx", "c"])
    assert {2: -np.inf, 29: -np.inf} == changed(min_tokens=3)
    assert {} == changed(min_tokens=2)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_run_comes_twice(size: int) -> None:
    """However an answer is drawn, no run of `no_repeat_ngram_size` tokens is in it twice."""
    params = SamplingParams(temperature=1.0, seed=size, no_repeat_ngram_size=size)
    process, sample = processor(params), make_sampler(params)
    token_ids = [0]
    for _ in range(60):
        token_ids.append(sample(process(np.array(token_ids, np.int64), np.zeros(20, np.float32))))
    runs = [tuple(token_ids[i : i + size]) for i in range(len(token_ids) - size + 1)]

    assert len(set(runs)) == len(runs)


def test_greedy_with_processors() -> None:
    """Greedy takes the best of what the processors leave."""
    params = SamplingParams(logit_bias={4: -np.inf}, repetition_penalty=10.0, min_tokens=1)
    process, sample = processor(params, prompt_length=1), make_sampler(params)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[2, 3, 4, 5]] = [9, 8, 7, 6]

    assert 2 == sample(logits)
    assert 5 == sample(process(ids(3), logits))
    assert 2 == sample(process(ids(3, 5), logits))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"no_repeat_ngram_size": 1}, "every token is masked"),
        ({"repetition_penalty": 1e-6}, "NaN or infinity"),
    ],
)
def test_nothing_left_to_choose(options: dict[str, Any], expected: str) -> None:
    """If processors leave nothing, or too much, the sampler says so."""
    params = SamplingParams(**options)

    with pytest.raises(InferenceError, match=expected):
        make_sampler(params)(processor(params)(ids(0, 1), np.full(2, 3e38, np.float32)))


def test_words_need_the_texts_of_tokens() -> None:
    """Without texts no word can be found in them, and that is said."""
    with pytest.raises(ValueError, match="bad_words needs the texts of the tokens"):
        make_processors(SamplingParams(bad_words=["a"]), prompt_length=0, eos_token_ids=EOS)


def test_end_tokens_beyond_the_vocabulary_are_passed_over() -> None:
    """An end token of the tokenizer that the model cannot give needs no forbidding."""
    process = processor(SamplingParams(min_tokens=1))

    expected: FloatArray = np.array([0, 0, -np.inf, 0], np.float32)
    np.testing.assert_array_equal(expected, process(ids(), np.zeros(4, np.float32)))


NOTHING = "change them in place and return nothing"


@pytest.mark.parametrize(
    ("returned", "came"),
    [
        (lambda logits: logits[:5], r"float32 \[5\]"),
        (lambda logits: np.concatenate([logits, logits]), r"float32 \[60\]"),
        (lambda logits: logits[None], r"float32 \[1, 30\]"),
        (lambda logits: logits.tolist(), "list"),
        (lambda logits: logits.astype(np.float64), r"float64 \[30\]"),
        (lambda logits: logits.astype(np.int64), r"int64 \[30\]"),
        (lambda logits: logits[3], "float32"),
        (lambda logits: 0, "int"),
    ],
)
def test_a_processor_that_returns_no_logits(returned: Any, came: str) -> None:
    """The message names the processor, what came of it and what to return."""
    process = user_processors([lambda _, logits: None, lambda _, logits: returned(logits)])
    message = rf"processors\[1\] returned {came}.*: return the logits .* float32 \[30\], or {NOTHING}"
    with pytest.raises(OptionTypeError, match=message):
        process(np.arange(3), np.zeros(VOCABULARY, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_processor_that_returns_no_numbers(value: float) -> None:
    """NaN and +inf are the processor's fault, unless they were there before."""
    process = user_processors(
        [lambda _, logits: np.where(np.arange(VOCABULARY) == 4, np.float32(value), logits)]
    )
    with pytest.raises(OptionError, match=r"processors\[0\] returned logits with NaN or \+inf"):
        process(np.arange(3), np.zeros(VOCABULARY, np.float32))
    broken = np.full(VOCABULARY, value, np.float32)
    np.testing.assert_array_equal(broken, process(np.arange(3), broken))


def test_a_processor_may_edit_in_place() -> None:
    """Nothing returned means changed in place; the logits of the model stay, and the next one sees the change."""
    logits = np.zeros(VOCABULARY, np.float32)

    def forbid(_: IntArray, scores: FloatArray) -> None:
        scores[7] = -np.inf

    process = user_processors([forbid, lambda _, scores: scores[::-1]])
    expected = np.zeros(VOCABULARY, np.float32)
    expected[VOCABULARY - 8] = -np.inf
    found = process(np.arange(3), logits)
    np.testing.assert_array_equal(expected, found)
    assert (True, 0.0) == (found.flags.c_contiguous, logits[7])
