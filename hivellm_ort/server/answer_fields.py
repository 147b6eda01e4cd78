"""Ends, counts and log probabilities of answers, as OpenAI's API has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["LogprobsFormatter", "finish_reason", "shown_logprobs", "timings_of", "usage_of"]

_IMPOSSIBLE = -9999.0  # OpenAI's number for a probability of 0, which JSON cannot write


class LogprobsFormatter:
    """Tokens with their texts and probabilities. Making the first of a base takes a while: not in an event loop.

    Args:
        tokenizer: of the base.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.token_bytes

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to a text; of a special token how it is written."""
        text = self._texts[token_id] if token_id < len(self._texts) else b""
        return text or (self._tokenizer.id_to_token(token_id) or "").encode()

    def text_of(self, token_id: int) -> str:
        """The same as text; bytes that are no character become U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def chat(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """Entries of `logprobs.content` of a chat, with `forced` where the grammar left no other token."""
        return [
            {
                **self._entry(one.token_id, one.logprob),
                "top_logprobs": [self._entry(*other) for other in one.top],
                **({"forced": True} if one.forced else {}),
            }
            for one in logprobs
        ]

    def plain(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """`logprobs` of a plain completion.

        Args:
            logprobs: of its tokens.
            offset: characters before the first.
        """
        texts = [self.text_of(one.token_id) for one in logprobs]
        *offsets, _ = accumulate(map(len, texts), initial=offset)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(one.logprob) for one in logprobs],
            "top_logprobs": [
                {self.text_of(token_id): _finite(logprob) for token_id, logprob in one.top}
                for one in logprobs
            ],
            "text_offset": offsets,
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.bytes_of(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}


def finish_reason(result: InferenceResult) -> str:
    """OpenAI's name of why a text ended."""
    return "length" if result.finish_reason == "length" else "stop"


def shown_logprobs(result: InferenceResult) -> list[TokenLogprob]:
    """The probabilities of an answer's tokens, without that of the token which ended it."""
    logprobs = list(result.logprobs or ())
    return logprobs[:-1] if result.finish_reason == "eos" else logprobs


def usage_of(prompts: Iterable[Sequence[InferenceResult]]) -> dict[str, Any]:
    """The counts of tokens of a request: a prompt counts once, however many answers it has.

    Args:
        prompts: the answers to each prompt.
    """
    groups = [list(results) for results in prompts]
    read = sum(results[0].prompt_tokens for results in groups)
    written = sum(result.completion_tokens for results in groups for result in results)
    cached = sum(results[0].cached_tokens for results in groups)
    thought = sum(result.reasoning_tokens for results in groups for result in results)
    forced = sum(result.forced_tokens for results in groups for result in results)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought, "forced_tokens": forced},
    }


def timings_of(result: InferenceResult) -> dict[str, float]:
    """Where the time of an answer went, in seconds, and how many tokens a second came after the first."""
    return {**dataclasses.asdict(result.timings), "tokens_per_second": result.tokens_per_second}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
