"""From a prompt and options to a request that the decode loop answers."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from hivellm_ort.base import Base
from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.loop import Request, Step, decode
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import make_processors
from hivellm_ort.decoding.sampler import LogitsProcessor, make_sampler
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.decoding.stream import Transcript
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import ContextLengthError
from hivellm_ort.options import GenerateOptions, check_options
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.result import InferenceResult
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.prompt import build_messages
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.thinking import ReasoningSplitter, opens_thinking

__all__ = ["DEFAULT_BATCH_SIZE", "DEFAULT_MAX_TOKENS", "Asked", "Voice", "answer_all", "answer_steps"]

DEFAULT_BATCH_SIZE = 8
"""Rows of a batch."""

DEFAULT_MAX_TOKENS = 512
"""Most tokens of an answer where neither the caller nor the manifest says."""


@dataclass(frozen=True)
class Voice:
    """What an expert brings to its requests.

    Attributes:
        base: its base.
        adapter: its adapter; None where it is merged.
        manifest: its manifest.
        template: how its prompts are written.
        eos_token_ids: tokens that end its answers: the base's, and the template's.
        dialect: what its system message says where the caller gives a schema only.
    """

    base: Base
    adapter: BoundAdapter | None
    manifest: ExpertManifest
    template: ChatTemplate
    eos_token_ids: frozenset[int]
    dialect: str | None

    def ask(self, prompt: str | None, options: GenerateOptions) -> Asked:
        """The request for a prompt.

        Raises:
            TypeError: an option does not exist.
            ValueError: one is out of range.
            ContextLengthError: prompt and `max_tokens` do not fit the model's context.
            InferenceError: the chat template fails.
        """
        check_options(options)
        thinking = options.get("enable_thinking") or False
        messages = build_messages(
            prompt,
            schema=options.get("schema"),
            system=options.get("system"),
            messages=options.get("messages"),
            dialect=self.dialect,
        )
        prompt_ids = self.template.encode(messages, self.base.tokenizer, enable_thinking=thinking)
        sampling = self._sampling(options)
        cancelled = threading.Event()
        request = Request(
            prompt_ids=prompt_ids,
            adapter=self.adapter,
            sampler=make_sampler(sampling),
            answer=self._answer(options, messages, thinking),
            eos_token_ids=self.eos_token_ids,
            max_tokens=self._max_tokens(prompt_ids, options.get("max_tokens")),
            process=self._process(sampling, options, len(prompt_ids)),
            logprobs=sampling.logprobs,
            lookup=PromptLookup(prompt_ids) if self._guesses(options) else None,
            cancelled=cancelled.is_set,
        )
        values = dataclasses.asdict(sampling) | {"max_tokens": request.max_tokens}
        transcript = Transcript(request, sampling=values, expert=self.manifest.name)
        return Asked(self.base, self.adapter, request, transcript, cancelled)

    def _sampling(self, options: GenerateOptions) -> SamplingParams:
        """The caller's values, else the manifest's, else those of SamplingParams."""
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        values: dict[str, Any] = {
            name: getattr(self.manifest.decoding, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        }
        values |= {name: value for name, value in options.items() if name in names and value is not None}
        words = options.get("bad_words")
        if words is not None:
            # As in the middle of a text too: with a space before it a word is other tokens.
            forms = [form for word in words for form in (word, f" {word}")]
            values["bad_words_ids"] = tuple(tuple(self.base.tokenizer.encode(form)) for form in forms)
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})

    def _process(
        self, sampling: SamplingParams, options: GenerateOptions, prompt_length: int
    ) -> LogitsProcessor | None:
        own = make_processors(sampling, prompt_length=prompt_length, eos_token_ids=self.eos_token_ids)
        chain = [process for process in (own, *(options.get("processors") or ())) if process is not None]
        if len(chain) < 2:
            return chain[0] if chain else None

        def process(token_ids: Any, logits: Any) -> Any:
            for one in chain:
                logits = one(token_ids, logits)
            return logits

        return process

    def _guesses(self, options: GenerateOptions) -> bool:
        """Whether to guess tokens: by default where several at once give exactly what one by one gives."""
        wanted = options.get("prompt_lookup")
        return self.base.config.precision == "fp32" if wanted is None else wanted

    def _answer(self, options: GenerateOptions, messages: Sequence[Any], thinking: bool) -> AnswerText:
        given = options.get("stop")
        stops = [given] if isinstance(given, str) else list(given or ())
        matcher = StopMatcher(
            [*stops, *self.template.stops],
            self.manifest.decoding.stop_sequences or (),
            include_stop=bool(options.get("include_stop")),
        )
        inside = opens_thinking(self.template.render(messages, enable_thinking=thinking))
        thinks = inside or self.template.supports_thinking
        reasoning = ReasoningSplitter(inside=inside) if thinks else None
        return AnswerText(IncrementalDetokenizer(self.base.tokenizer), matcher, reasoning)

    def _max_tokens(self, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
        if max_tokens is not None and not (isinstance(max_tokens, int) and max_tokens >= 1):
            raise ValueError(f"max_tokens is {max_tokens!r}: it must be an integer from 1")
        context = self.base.config.architecture.max_position_embeddings
        room = context - len(prompt_ids)
        if room < (max_tokens or 1):
            raise ContextLengthError(
                f"a prompt of {len(prompt_ids)} tokens and max_tokens={max_tokens or 1} exceed the model's context "
                f"of {context} tokens: shorten the prompt or lower max_tokens"
            )
        return max_tokens or min(self.manifest.decoding.max_new_tokens or DEFAULT_MAX_TOKENS, room)


@dataclass(frozen=True)
class Asked:
    """A request to a base and an adapter, what is collected of its answer, and how it is cancelled."""

    base: Base
    adapter: BoundAdapter | None
    request: Request
    transcript: Transcript
    cancelled: threading.Event


def answer_steps(asked: Sequence[Asked], rows: int = 1) -> Generator[tuple[int, Step]]:
    """The steps of requests to one base, as many at a time as `rows`; its rows are given back at the end."""
    engine = asked[0].base.engine
    requests = [one.request for one in asked]
    adapter = asked[0].adapter
    capacity = max(len(request.prompt_ids) + min(request.max_tokens, 256) for request in requests)
    decoder = engine.decoder(adapter, capacity=capacity, rows=min(rows, len(requests)))
    requests[0].swap_seconds = decoder.swap_seconds
    try:
        yield from decode(decoder, requests)
    finally:
        engine.release(decoder)


def answer_all(asked: Sequence[Asked], batch_size: int) -> list[InferenceResult]:
    """The results of requests, in their order; those of one base are answered together."""
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size is {batch_size!r}: it must be an integer from 1")
    for base in dict.fromkeys(one.base for one in asked):
        own = [one for one in asked if one.base is base]
        begin = time.perf_counter()
        for number, step in answer_steps(own, batch_size):
            now = time.perf_counter()
            own[number].transcript.add(step, now - begin)
            begin = now
    return [one.transcript.result() for one in asked]
