"""`/v1/completions`: the model continues a prompt, without a chat template."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from hivellm_ort.options import GenerateOptions
from hivellm_ort.result import InferenceResult, TokenLogprob
from hivellm_ort.server.answer_fields import (
    LogprobsFormatter,
    finish_reason,
    shown_logprobs,
    usage_of,
    warnings_field,
)
from hivellm_ort.server.errors import field_error
from hivellm_ort.server.generation import RunningAnswers
from hivellm_ort.server.generation_options import generation_options, options_per_answer
from hivellm_ort.server.models import check_length, choose_expert
from hivellm_ort.server.options import AUTO, ServerLimits
from hivellm_ort.server.schemas.completions import CompletionBody
from hivellm_ort.server.state import server_state
from hivellm_ort.server.streaming import IDLE_SECONDS, STREAM_RESPONSES, answer
from hivellm_ort.server.strict_route import StrictJSONRoute
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["encode_plain", "is_token", "router"]

router = APIRouter(tags=["answers"], route_class=StrictJSONRoute)


@router.post("/v1/completions", responses=STREAM_RESPONSES, response_model=None)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue one or several prompts, in one document or as a stream (`stream`)."""
    state = server_state(request)
    prompts = _prompts(body, state.options.limits)
    options = generation_options(body, state.options.limits)
    if body.logprobs is not None:
        if body.echo:
            raise field_error(
                "echo", "log probabilities of the prompt are unavailable: leave out echo or logprobs"
            )
        options["logprobs"] = body.logprobs
    for prompt in prompts:
        check_length(state, "prompt", prompt)
    question = next((prompt for prompt in prompts if isinstance(prompt, str)), None)
    if body.model == AUTO and len(prompts) > 1:
        raise field_error("model", f"{AUTO!r} chooses by one prompt: send one, or name an expert")
    chosen = await choose_expert(state, body.model, question)

    def prepare() -> tuple[list[list[int]], list[str], LogprobsFormatter | None]:
        tokenizer = state.manager.tokenizer(chosen.name)
        special = body.add_special_tokens is not False
        encoded = [
            encode_plain(tokenizer, prompt, special=special) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]
        echoed = [_text(tokenizer, prompt) if body.echo else "" for prompt in prompts]
        return encoded, echoed, LogprobsFormatter(tokenizer) if body.logprobs is not None else None

    encoded, echoed, texts = await asyncio.to_thread(prepare)
    n = body.n or 1
    answer_options: list[GenerateOptions] = [
        one for token_ids in encoded for one in options_per_answer({**options, "prompt_ids": token_ids}, n)
    ]
    formatter = _CompletionFormatter(chosen.name, texts, echoed, n)
    return await answer(request, body, chosen, answer_options, formatter)


def encode_plain(tokenizer: TextTokenizer, text: str, *, special: bool) -> list[int]:
    """Return the token ids of a text without a chat template.

    Args:
        tokenizer: The tokenizer of the base.
        text: The text. Special tokens in it are encoded as special tokens.
        special: Whether to begin with the tokens that the tokenizer puts before a text, such as `<s>`.
    """
    prefix = tokenizer.encode(tokenizer.prefix) if special and tokenizer.prefix else []
    return [*prefix, *tokenizer.encode(text)]


@dataclass(frozen=True)
class _CompletionFormatter:
    """Formats answers as documents and chunks of `/v1/completions`.

    Attributes:
        model: The name of the expert.
        texts: Formats log probabilities; None if the request asks for none.
        echoed: For each prompt, the text before its answers.
        n: How many answers each prompt has.
    """

    model: str
    texts: LogprobsFormatter | None
    echoed: Sequence[str]
    n: int

    def whole(self, results: list[InferenceResult]) -> dict[str, Any]:
        """Return all answers in one document."""
        choices = []
        for index, result in enumerate(results):
            echoed = self.echoed[index // self.n]
            logprobs = None
            if self.texts is not None:
                logprobs = self.texts.completion(shown_logprobs(result), 0)
            choices.append(
                {
                    "index": index,
                    "text": echoed + result.text,
                    "logprobs": logprobs,
                    "finish_reason": finish_reason(result),
                }
            )
        return {
            **self._document(),
            "choices": choices,
            "usage": self._usage(results),
            **warnings_field(results),
        }

    async def chunks(self, answers: RunningAnswers, *, usage: bool) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the chunks of the answers. None means that nothing came for a while.

        Args:
            answers: The running answers, with steps.
            usage: Whether the last chunk has the token usage.
        """
        document = self._document()
        if usage:
            document["usage"] = None
        results: dict[int, InferenceResult] = {}
        held: dict[int, list[TokenLogprob]] = {}
        written = dict.fromkeys(range(len(self.echoed) * self.n), 0)  # characters of the tokens so far

        def chunk(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
            logprobs = held.pop(index, None)
            shown = None
            if logprobs and self.texts is not None:
                shown = self.texts.completion(logprobs, written[index])
                written[index] += sum(map(len, shown["tokens"]))
            choice = {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}
            return {**document, "choices": [choice]}

        for index in written:
            if echoed := self.echoed[index // self.n]:
                yield chunk(index, echoed)
        async for event in answers.events(IDLE_SECONDS):
            if event is None:
                yield None
                continue
            index, what = event
            if isinstance(what, InferenceResult):
                results[index] = what
                yield chunk(index, "", finish_reason(what))
                continue
            if what.logprob is not None and what.finish_reason != "eos":
                held.setdefault(index, []).append(what.logprob)
            if what.text:
                yield chunk(index, what.text)
        if usage:
            counts = self._usage([results[index] for index in sorted(results)])
            yield {**document, "choices": [], "usage": counts}

    def _usage(self, results: Sequence[InferenceResult]) -> dict[str, Any]:
        return usage_of(results[begin : begin + self.n] for begin in range(0, len(results), self.n))

    def _document(self) -> dict[str, Any]:
        identity = f"cmpl-{uuid.uuid4().hex}"
        return {"id": identity, "object": "text_completion", "created": int(time.time()), "model": self.model}


def _prompts(body: CompletionBody, limits: ServerLimits) -> list[str | list[int]]:
    """Return the prompts, as texts or token ids.

    Raises:
        ApiError: A prompt has another type, or there are none or too many.
    """
    given = body.prompt
    prompts = given if isinstance(given, list) and not _is_tokens(given) else [given]
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not _is_tokens(prompt):
            where = f"prompt[{index}]" if prompts is given else "prompt"
            raise field_error(where, "it must be a text, a list of token ids, or a list of either")
    if not 1 <= len(prompts) <= limits.max_prompts:
        raise field_error("prompt", f"{len(prompts)} prompts; 1 to {limits.max_prompts} are allowed")
    return prompts


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def is_token(tokenizer: TextTokenizer, token_id: int) -> bool:
    """Return whether the vocabulary has this token id. The tokenizers library takes unsigned 32-bit ids."""
    return 0 <= token_id < 1 << 32 and tokenizer.id_to_token(token_id) is not None


def _text(tokenizer: TextTokenizer, prompt: str | Sequence[int]) -> str:
    if not isinstance(prompt, str):
        for index, token_id in enumerate(prompt):
            if not is_token(tokenizer, token_id):
                raise field_error("prompt", f"[{index}] is {token_id}: no token has this id")
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)
