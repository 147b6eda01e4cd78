"""Fields of answers that several routes share: finish reason, usage, timings and log probabilities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["LogprobsFormatter", "finish_reason", "shown_logprobs", "timings_of", "usage_of", "warnings_field"]

_IMPOSSIBLE = -9999.0  # OpenAI's value for a probability of 0, whose logarithm JSON cannot represent


class LogprobsFormatter:
    """Formats log probabilities with the texts of their tokens.

    The first one of a base takes time to build. Do not build it in the event loop.

    Args:
        tokenizer: The tokenizer of the base.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.token_bytes

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text. For a special token, return its name."""
        text = self._texts[token_id] if token_id < len(self._texts) else b""
        return text or (self._tokenizer.id_to_token(token_id) or "").encode()

    def text_of(self, token_id: int) -> str:
        """Return the text of a token. Invalid UTF-8 becomes U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def chat(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """Return `logprobs.content` of a chat. `forced` marks tokens for which the grammar allowed no other."""
        return [
            {
                **self._entry(one.token_id, one.logprob),
                "top_logprobs": [self._entry(*other) for other in one.top],
                **({"forced": True} if one.forced else {}),
            }
            for one in logprobs
        ]

    def completion(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Return `logprobs` of a plain completion.

        Args:
            logprobs: The log probabilities of its tokens.
            offset: How many characters come before the first token.
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
    """Return OpenAI's finish reason of a text."""
    return "length" if result.finish_reason == "length" else "stop"


def shown_logprobs(result: InferenceResult) -> list[TokenLogprob]:
    """Return the log probabilities of an answer's tokens, without the end-of-turn token."""
    logprobs = list(result.logprobs or ())
    return logprobs[:-1] if result.finish_reason == "eos" else logprobs


def usage_of(prompts: Iterable[Sequence[InferenceResult]]) -> dict[str, Any]:
    """Return the token usage of a request. A prompt with several answers counts once.

    Args:
        prompts: For each prompt, its answers.
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
    """Return the timings of an answer in seconds, and its tokens per second after the first token."""
    return {**dataclasses.asdict(result.timings), "tokens_per_second": result.tokens_per_second}


def warnings_field(results: Iterable[InferenceResult]) -> dict[str, list[str]]:
    """Return the field `warnings` with each warning once; no field if there are none."""
    warnings = list(dict.fromkeys(warning for result in results for warning in result.warnings))
    return {"warnings": warnings} if warnings else {}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
