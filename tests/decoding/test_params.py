"""Sampling parameters: defaults, ranges and messages."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from hivellm_ort.decoding.params import SamplingParams

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"temperature": -0.1},
            r"^temperature is -0.1: it must be 0 \(greedy\) or a number from 0.0001 to 1000000$",
        ),
        ({"temperature": 1e-5}, "^temperature is 1e-05"),
        ({"temperature": 1e39}, "^temperature is 1e[+]39"),
        ({"temperature": NAN}, "^temperature is nan"),
        ({"temperature": INF}, "^temperature is inf"),
        ({"temperature": "0.7"}, "^temperature is '0.7'"),
        ({"temperature": True}, "^temperature is True"),
        ({"temperature": None}, "^temperature is None"),
        ({"top_p": -0.1}, "^top_p is -0.1: it must be a number from 0 to 1$"),
        ({"top_p": 1.1}, "^top_p is 1.1"),
        ({"top_p": NAN}, "^top_p is nan"),
        ({"top_p": True}, "^top_p is True"),
        ({"min_p": -0.1}, "^min_p is -0.1: it must be a number from 0 to 1$"),
        ({"min_p": 1.5}, "^min_p is 1.5"),
        ({"min_p": False}, "^min_p is False"),
        ({"typical_p": 0}, "^typical_p is 0: it must be a number above 0, up to 1$"),
        ({"typical_p": 1.01}, "^typical_p is 1.01"),
        ({"typical_p": NAN}, "^typical_p is nan"),
        ({"top_k": -1}, r"^top_k is -1: it must be 0 \(off\) or a positive integer$"),
        ({"top_k": 2.5}, "^top_k is 2.5"),
        ({"top_k": True}, "^top_k is True"),
        (
            {"repetition_penalty": 0},
            "^repetition_penalty is 0: it must be a number from 0.000001 to 1000000$",
        ),
        ({"repetition_penalty": -1.1}, "^repetition_penalty is -1.1"),
        ({"repetition_penalty": 1e-320}, "^repetition_penalty is 1e-320"),
        ({"repetition_penalty": 1e39}, "^repetition_penalty is 1e[+]39"),
        ({"repetition_penalty": INF}, "^repetition_penalty is inf"),
        ({"repetition_penalty": True}, "^repetition_penalty is True"),
        ({"presence_penalty": 2.1}, "^presence_penalty is 2.1: it must be a number from -2 to 2$"),
        ({"presence_penalty": NAN}, "^presence_penalty is nan"),
        ({"frequency_penalty": -2.1}, "^frequency_penalty is -2.1: it must be a number from -2 to 2$"),
        ({"frequency_penalty": "1"}, "^frequency_penalty is '1'"),
        (
            {"no_repeat_ngram_size": -1},
            r"^no_repeat_ngram_size is -1: it must be 0 \(off\) or a positive integer$",
        ),
        ({"no_repeat_ngram_size": 1.0}, "^no_repeat_ngram_size is 1.0"),
        ({"min_tokens": -1}, r"^min_tokens is -1: it must be 0 \(off\) or a positive integer$"),
        ({"min_tokens": True}, "^min_tokens is True"),
        ({"logit_bias": [1]}, r"^logit_bias is \[1\]: it must be a mapping of token ids to numbers$"),
        ({"logit_bias": None}, "^logit_bias is None"),
        ({"logit_bias": {"7": 1}}, "^a token id in logit_bias is '7': it must be an integer from 0$"),
        ({"logit_bias": {-1: 1}}, "^a token id in logit_bias is -1"),
        ({"logit_bias": {2**31: 1}}, "^a token id in logit_bias is 2147483648"),
        ({"logit_bias": {True: 1}}, "^a token id in logit_bias is True"),
        ({"logit_bias": {7: NAN}}, r"^logit_bias\[7\] is nan: it must be -inf or a finite number$"),
        ({"logit_bias": {7: INF}}, r"^logit_bias\[7\] is inf"),
        ({"logit_bias": {7: 1e39}}, r"^logit_bias\[7\] is 1e\+39"),
        ({"logit_bias": {7: True}}, r"^logit_bias\[7\] is True"),
        ({"bad_words": "ab"}, "^bad_words is 'ab': it must be a sequence of texts$"),
        ({"bad_words": None}, "^bad_words is None"),
        ({"bad_words": [7]}, r"^bad_words\[0\] is 7: it must be a text of one or more characters"),
        ({"bad_words": ["a", ""]}, r"^bad_words\[1\] is ''"),
        ({"bad_words": ["a", "b\ud800"]}, r"^bad_words\[1\] is 'b\\ud800'"),
        ({"seed": -1}, "^seed is -1: it must be None or an integer from 0$"),
        ({"seed": 0.5}, "^seed is 0.5"),
        ({"seed": True}, "^seed is True"),
        ({"logprobs": -1}, "^logprobs is -1: it must be None or an integer from 0 to 20$"),
        ({"logprobs": 21}, "^logprobs is 21"),
        ({"logprobs": True}, "^logprobs is True"),
    ],
)
def test_params_outside_their_range(options: dict[str, Any], expected: str) -> None:
    """A value outside its range is a ValueError with name, value and range; a bool is no number."""
    with pytest.raises(ValueError, match=expected):
        SamplingParams(**options)


def test_the_ends_of_the_ranges() -> None:
    """What lies on an edge of its range, and numpy's numbers, are taken."""
    SamplingParams(temperature=1e-4, top_p=0, top_k=0, min_p=1, typical_p=1, presence_penalty=-2, logprobs=0)
    SamplingParams(top_p=1, frequency_penalty=2, repetition_penalty=1e-3, logprobs=20, seed=0)
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        logit_bias={np.int64(7): np.float32(-100), 0: -INF},
        bad_words=["a", "\n"],
    )

    assert {7: -100.0, 0: -INF} == params.logit_bias
    assert ("a", "\n") == params.bad_words


def test_the_defaults_are_greedy_and_change_nothing() -> None:
    """By default everything is off."""
    expected = {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "no_repeat_ngram_size": 0,
        "logit_bias": {},
        "bad_words": (),
        "min_tokens": 0,
        "seed": None,
        "logprobs": None,
    }

    assert expected == asdict(SamplingParams())


def test_params_are_values() -> None:
    """They can be compared, hashed, copied and pickled, and do not change with what they were made of."""
    bias, words = {7: 1.0}, ["a"]
    params = SamplingParams(logit_bias=bias, bad_words=words)
    bias[7] = 2.0
    words.append("b")

    assert SamplingParams(logit_bias={7: 1.0}, bad_words=["a"]) == params
    assert params == pickle.loads(pickle.dumps(params)) == copy.deepcopy(params)
    assert hash(params) == hash(copy.copy(params))
