"""Logits processors: penalties, biases and bans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Any, TypeAlias

import numpy as np

from hivellm_ort.callbacks import as_exception
from hivellm_ort.decoding.arrays import FloatArray, IntArray
from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.sampler import LogitsProcessor
from hivellm_ort.errors import OptionError, OptionTypeError

__all__ = ["make_processors", "user_processors"]

_Edit: TypeAlias = Callable[[IntArray, FloatArray], None]


def make_processors(
    params: SamplingParams,
    *,
    prompt_length: int,
    eos_token_ids: Collection[int],
    token_texts: Callable[[], TokenTexts] | None = None,
) -> LogitsProcessor | None:
    """Return a function that applies all processors of `params`, or None if there are none.

    The order is that of transformers: bias, repetition penalty, presence and frequency penalty (in vLLM's position),
    n-grams, bad words, end tokens. They run before the temperature.

    Args:
        params: The parameters. Temperature and truncation are not used here. Token ids must be in the vocabulary.
        prompt_length: Number of prompt tokens.
        eos_token_ids: The end tokens.
        token_texts: Returns the texts of the tokens, for `bad_words`.

    Returns:
        The processor of one row. It returns a copy of the logits. Between calls it remembers counted ids.

    Raises:
        OptionError: There are bad words and no `token_texts`.
    """
    edits: list[_Edit] = []
    if params.logit_bias:
        edits.append(_bias(params))
    if params.repetition_penalty != 1:
        edits.append(_repetition(np.float32(params.repetition_penalty)))
    if params.presence_penalty or params.frequency_penalty:
        edits.append(_presence_and_frequency(params, prompt_length))
    if params.no_repeat_ngram_size:
        edits.append(_no_repeat(params.no_repeat_ngram_size))
    if params.bad_words:
        if token_texts is None:
            raise OptionError("bad_words needs the texts of the tokens")
        edits.append(
            token_texts().forbid(params.bad_words, prompt_length=prompt_length, end_token_ids=eos_token_ids)
        )
    if params.min_tokens:
        edits.append(_min_tokens(prompt_length + params.min_tokens, eos_token_ids))
    if not edits:
        return None

    def process(token_ids: IntArray, logits: FloatArray) -> FloatArray:
        logits = logits.copy()
        with np.errstate(over="ignore"):  # the sampler refuses infinity
            for edit in edits:
                edit(token_ids, logits)
        return logits

    return process


def user_processors(processors: Sequence[Callable[[Any, Any], Any]]) -> LogitsProcessor:
    """Return a function that calls a user's processors in order, on a copy of the logits.

    Each must return float32 logits of the shape that it got, or change them in place and return None.

    Args:
        processors: At least one.

    Returns:
        The processor. It raises OptionTypeError if one returns something else, OptionError if one adds NaN or +inf,
        and InferenceError in place of errors such as `SystemExit`.
    """

    def process(token_ids: IntArray, logits: FloatArray) -> FloatArray:
        given = logits
        logits = logits.copy()
        for index, one in enumerate(processors):
            try:
                with np.errstate():  # its settings must not stay in this thread
                    returned = one(token_ids, logits)
            except BaseException as error:
                raise as_exception(error, f"processors[{index}]")  # noqa: B904 - it has its cause
            logits = _sound(logits if returned is None else returned, given, f"processors[{index}]")
        return logits

    return process


def _sound(returned: Any, given: FloatArray, name: str) -> FloatArray:
    is_array = isinstance(returned, np.ndarray)
    if not is_array or returned.dtype != np.float32 or returned.shape != given.shape:
        came = f"{returned.dtype} {list(returned.shape)}" if is_array else type(returned).__name__
        raise OptionTypeError(
            f"{name} returned {came}: return the logits as a numpy array, float32 {list(given.shape)}, or change "
            "them in place and return nothing"
        )
    if not returned.max() < inf and given.max() < inf:  # the maximum of NaN is NaN
        raise OptionError(
            f"{name} returned logits with NaN or +inf: use -inf to forbid a token, else finite numbers"
        )
    return np.ascontiguousarray(returned)


def _bias(params: SamplingParams) -> _Edit:
    ids = np.array(list(params.logit_bias), np.int64)
    biases = np.array(list(params.logit_bias.values()), np.float32)

    def edit(_: IntArray, logits: FloatArray) -> None:
        logits[ids] += biases

    return edit


def _repetition(penalty: np.float32) -> _Edit:
    seen = _Tally(0)

    def edit(token_ids: IntArray, logits: FloatArray) -> None:
        ids, _ = seen.of(token_ids, logits.size)
        found = logits[ids]
        logits[ids] = np.where(found < 0, found * penalty, found / penalty)

    return edit


def _presence_and_frequency(params: SamplingParams, prompt_length: int) -> _Edit:
    presence, frequency = np.float32(params.presence_penalty), np.float32(params.frequency_penalty)
    generated = _Tally(prompt_length)

    def edit(token_ids: IntArray, logits: FloatArray) -> None:
        ids, counts = generated.of(token_ids, logits.size)
        logits[ids] -= frequency * counts + presence

    return edit


def _no_repeat(size: int) -> _Edit:
    def edit(token_ids: IntArray, logits: FloatArray) -> None:
        count = token_ids.size
        if size == 1:
            logits[token_ids] = -np.inf
        if size == 1 or count < size:
            return
        run = token_ids[count - size + 1 :]
        # Find earlier occurrences of the n-gram: first of its last token, then of the others.
        starts = np.flatnonzero(token_ids[size - 2 : -1] == run[-1])
        for place in range(size - 2):
            if not starts.size:
                return
            starts = starts[token_ids[starts + place] == run[place]]
        logits[token_ids[starts + size - 1]] = -np.inf

    return edit


def _min_tokens(least: int, eos_token_ids: Collection[int]) -> _Edit:
    ends = np.array(sorted(eos_token_ids), np.int64)

    def edit(token_ids: IntArray, logits: FloatArray) -> None:
        if token_ids.size < least:
            logits[ends[ends < logits.size]] = -np.inf

    return edit


class _Tally:
    """Counts tokens incrementally from call to call. Tokens that were removed since then are subtracted.

    Args:
        start: Number of tokens at the beginning that do not count.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._counted = self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float32)

    def of(self, token_ids: IntArray, vocabulary: int) -> tuple[IntArray, FloatArray]:
        """Return the distinct tokens, int64 [m], and their counts, float32 [m].

        Args:
            token_ids: int64 [n].
            vocabulary: Size of the vocabulary; the same in every call.
        """
        if not self._counts.size:
            self._counts = np.zeros(vocabulary, np.float32)
        tokens, before = token_ids[self._start :], self._counted
        common = min(tokens.size, before.size)
        differing = np.flatnonzero(tokens[:common] != before[:common])
        same = int(differing[0]) if differing.size else common
        if same < before.size:
            np.subtract.at(self._counts, before[same:], 1)
            self._ids = self._ids[self._counts[self._ids] > 0]
        fresh = tokens[same:]
        new = np.unique(fresh[self._counts[fresh] == 0])
        np.add.at(self._counts, fresh, 1)
        self._ids = np.concatenate([self._ids, new])
        self._counted = tokens.copy()
        return self._ids, self._counts[self._ids]
