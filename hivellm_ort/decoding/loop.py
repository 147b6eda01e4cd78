"""The one decode generator; everything that generates is a wrapper around it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hivellm_ort.decoding.sampler import FloatArray, LogitsProcessor, Sampler
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.result import FinishReason
from hivellm_ort.text.detokenizer import IncrementalDetokenizer

__all__ = ["Forward", "Step", "decode"]


class Forward(Protocol):
    """What the loop needs of the engine: append tokens, get the logits float32 [vocab] after the last."""

    def forward(self, token_ids: list[int]) -> FloatArray:
        """Append `token_ids` to the row."""


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token_id: the token.
        text: text that is certain now; may be empty, and may hold more than this token's.
        finish_reason: None while the generation goes on.
    """

    token_id: int
    text: str
    finish_reason: FinishReason | None = None


def decode(
    model: Forward,
    prompt_ids: list[int],
    *,
    detokenizer: IncrementalDetokenizer,
    sampler: Sampler,
    stops: StopMatcher,
    eos_token_ids: Collection[int],
    max_tokens: int,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[Step]:
    """Prefill `prompt_ids`, then generate until an end token, a stop string or `max_tokens`.

    The texts of all steps joined are the answer. The last step, and only it, has a `finish_reason`.

    Args:
        model: an empty row of the engine.
        prompt_ids: at least one token.
        detokenizer: fresh; turns tokens to text.
        sampler: picks a token from logits float32 [vocab].
        stops: fresh; cuts the text at a stop string.
        eos_token_ids: tokens that end the answer.
        max_tokens: at least 1.
        processors: change the logits before sampling, in this order; each gets the token ids so far, prompt
            included, int64 [n].
    """
    token_ids = list(prompt_ids)
    pending = prompt_ids
    for count in range(1, max_tokens + 1):
        logits = model.forward(pending)
        if processors:
            so_far = np.array(token_ids, np.int64)
            for process in processors:
                logits = process(so_far, logits)
        token = sampler(logits)
        token_ids.append(token)
        pending = [token]
        ended = token in eos_token_ids
        text, stopped = stops.push("" if ended else detokenizer.push(token))
        if not stopped and (ended or count == max_tokens):
            tail, stopped = stops.push(detokenizer.flush())
            text += tail + stops.flush()
            stopped = stops.matched is not None
            yield Step(token, text, "stop" if stopped else "eos" if ended else "length")
            return
        yield Step(token, text, "stop" if stopped else None)
        if stopped:
            return
