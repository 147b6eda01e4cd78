"""Sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

from hivellm_ort.errors import OptionError, argument
from hivellm_ort.ranges import MAX_PENALTY, MAX_TEMPERATURE, MIN_PENALTY, MIN_TEMPERATURE

__all__ = ["SamplingParams"]

_MAX_LOGPROBS = 20
_MAX_BIAS = 3.4e38  # float32
_TOKEN_IDS = range(2**31)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy, without penalties or bans.

    Names and meanings are those of transformers and vLLM. "Seen" tokens are those of prompt and answer, "generated"
    tokens those of the answer.

    Args:
        temperature: 0 takes the most likely token; otherwise 0.0001 to 1000000, the logits' divisor.
        top_p: 0 to 1: keep the most likely tokens that together reach this probability, at least one.
        top_k: Keep the tokens that score no less than the k-th best; 0 keeps all.
        min_p: 0 to 1: keep the tokens that have at least this part of the most likely one's probability.
        typical_p: Above 0, up to 1: keep the tokens whose surprise is nearest to its mean and that together reach
            this probability; 1 keeps all.
        repetition_penalty: 0.000001 to 1000000: divides the positive logits of seen tokens and multiplies the
            negative ones.
        presence_penalty: -2 to 2: subtracted from the logits of generated tokens.
        frequency_penalty: -2 to 2: subtracted from a token's logit as many times as it was generated.
        no_repeat_ngram_size: No n-gram of this size among the seen tokens occurs twice; 0 is off.
        logit_bias: Added to the logits of these token ids; -inf forbids a token, which no finite number does.
        bad_words: Texts that the answer never contains, in any position (also inside other words) and any
            tokenization. Different spellings are different texts.
        min_tokens: Least tokens of the answer: no end token comes before.
        seed: At least 0; gives the same draws in every run. None gives different ones each time.
        logprobs: 0 to 20: return the log probability of each token and of this many best tokens. None returns none.

    Raises:
        OptionError: A value is outside its range, not a number or NaN. A bool is not a number.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    bad_words: Sequence[str] = ()
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        t, seed, best = self.temperature, self.seed, self.logprobs
        sound = _is_number(t) and (t == 0 or MIN_TEMPERATURE <= t <= MAX_TEMPERATURE)  # false for NaN
        _require(
            "temperature", t, sound, f"0 (greedy) or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}"
        )
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            _require(name, share, _is_number(share) and 0 <= share <= 1, "a number from 0 to 1")
        sound = _is_number(self.typical_p) and 0 < self.typical_p <= 1
        _require("typical_p", self.typical_p, sound, "a number above 0, up to 1")
        sound = _is_number(self.repetition_penalty) and MIN_PENALTY <= self.repetition_penalty <= MAX_PENALTY
        allowed = f"a number from {MIN_PENALTY:f} to {MAX_PENALTY:.0f}"
        _require("repetition_penalty", self.repetition_penalty, sound, allowed)
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _require(name, penalty, _is_number(penalty) and -2 <= penalty <= 2, "a number from -2 to 2")
        for name in ("top_k", "no_repeat_ngram_size", "min_tokens"):
            count = getattr(self, name)
            _require(name, count, _is_whole(count) and count >= 0, "0 (off) or a positive integer")
        _require("seed", seed, seed is None or (_is_whole(seed) and seed >= 0), "None or an integer from 0")
        sound = best is None or (_is_whole(best) and 0 <= best <= _MAX_LOGPROBS)
        _require("logprobs", best, sound, f"None or an integer from 0 to {_MAX_LOGPROBS}")
        # Copies, so that checked values cannot change later.
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "bad_words", _words(self.bad_words))


def _biases(given: Any) -> dict[int, float]:
    _require("logit_bias", given, isinstance(given, Mapping), "a mapping of token ids to numbers")
    for token_id, bias in given.items():
        _require("a token id in logit_bias", token_id, _is_token_id(token_id), "an integer from 0")
        sound = _is_number(bias) and (bias == -inf or -_MAX_BIAS <= bias <= _MAX_BIAS)
        _require(f"logit_bias[{token_id}]", bias, sound, "-inf or a finite number")
    return {int(token_id): float(bias) for token_id, bias in given.items()}


def _words(given: Any) -> tuple[str, ...]:
    listing = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    _require("bad_words", given, listing, "a sequence of texts")
    for index, word in enumerate(given):
        sound = (
            isinstance(word, str) and word != "" and not any("\ud800" <= sign <= "\udfff" for sign in word)
        )
        _require(f"bad_words[{index}]", word, sound, "a text of one or more characters, all of Unicode")
    return tuple(given)


def _require(name: str, value: object, sound: bool, allowed: str) -> None:
    if not sound:
        raise OptionError(f"{argument(name)} is {value!r}: it must be {allowed}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_token_id(value: Any) -> bool:
    return _is_whole(value) and int(value) in _TOKEN_IDS
