"""Tokens that the model chooses itself, in place of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from looping import Letters, Model, generation, run, text_of

from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.errors import InferenceError


def likes(text: str) -> str:
    """Letters in order, around again, and an end after 14."""
    return "\0" if len(text) > 14 else chr(ord("a") + (ord(text[-1]) - ord("a") + 1) % 5)


class Anything:
    """A constraint that allows every token."""

    complete, finished = True, False

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """See `Constraint`; these are logits."""
        assert np.float32 == logits.dtype
        return logits

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""

    def forced_tokens(self) -> list[int]:
        """See `Constraint`."""
        return []


def unchanged(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """A processor, which might change them."""
    assert np.float32 == logits.dtype
    return logits


NEEDS_LOGITS: dict[str, dict[str, Any]] = {
    "temperature": {"sampling": SamplingParams(temperature=0.01, seed=1)},
    "processor": {"process": unchanged},
    "grammar": {"constraint": Anything()},
    "logprobs": {"sampling": SamplingParams(logprobs=0)},
}


@pytest.mark.parametrize("rows", [1, 3])
def test_the_answers_are_the_same(rows: int) -> None:
    """Whether the model gives logits or tokens, alone and beside others, and it is always asked for tokens."""
    answers = []
    for chooses in (False, True):
        model = Model(likes, rows, chooses=chooses)
        answers.append([text_of(steps) for steps in run(model, *(generation(prompt) for prompt in "abdec"))])
        assert {True} == set(model.greedy)
    assert answers[0] == answers[1]
    assert 5 == len(set(answers[0]))


@pytest.mark.parametrize("name", NEEDS_LOGITS)
def test_a_request_that_needs_logits(name: str) -> None:
    """A temperature, a processor, a grammar or probabilities: logits are asked for, for rows beside it too."""
    model = Model(likes, 1, chooses=True)
    (steps,) = run(model, generation("a", **NEEDS_LOGITS[name]))
    assert "bcdeabcdeabcde" == text_of(steps)
    assert {False} == set(model.greedy)
    model = Model(likes, 2, chooses=True)
    long, short = run(model, generation("a"), generation("aaaaaaaaaa", **NEEDS_LOGITS[name]))
    assert ("bcdeabcdeabcde", "bcdea") == (text_of(long), text_of(short))
    # The two prompts, the steps of both, and the rest of the first alone.
    assert [True, False, *[False] * 5, *[True] * 9] == model.greedy


@pytest.mark.parametrize("chooses", [False, True])
def test_guesses(chooses: bool) -> None:
    """A guess is verified by the tokens of all its positions."""
    prompt = "abcdeabcdeabc"
    repeats = lambda text: chr(ord("a") + len(text) % 5) if len(text) < 40 else "\0"  # noqa: E731
    lookup = PromptLookup(Letters().encode(prompt))
    model = Model(repeats, chooses=chooses)
    (steps,) = run(model, generation(prompt, lookup=lookup))
    assert ("abcde" * 8)[len(prompt) :] == text_of(steps)
    assert lookup.accepted > 10
    assert len(model.passes) < 15
    assert {True} == set(model.greedy)


def test_no_token() -> None:
    """A row for which the model has none fails alone, as with logits that a sampler refuses."""

    class Failing(Model):
        def _scores(self, texts: Any, greedy: bool) -> np.ndarray:
            scores = super()._scores(texts, greedy)
            return np.where([len(text) > 5 and text.startswith("b") for text in texts], -1, scores)

    good, bad = run(Failing(likes, 2, chooses=True), generation("a"), generation("b"))
    assert "bcdeabcdeabcde" == text_of(good)
    assert isinstance(bad[-1].error, InferenceError)
    assert "no token can be chosen: the logits hold NaN" in str(bad[-1].error)
    assert "cdeab" == text_of(bad)
