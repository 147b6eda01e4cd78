"""From a prompt and options to a request that the decode loop answers."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hivellm_ort.base import Base
from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.loop import Request, Step
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import checked, make_processors
from hivellm_ort.decoding.sampler import LogitsProcessor, make_sampler
from hivellm_ort.decoding.serving import refuse_to_wait
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.decoding.stream import TextStream
from hivellm_ort.decoding.transcript import Transcript
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import (
    ContextLengthError,
    GrammarError,
    InferenceError,
    OptionError,
    OptionTypeError,
    argument,
)
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.thinking import AfterThinking
from hivellm_ort.options import GenerateOptions, check_options, check_prompt
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.result import InferenceResult
from hivellm_ort.scheduler import DEFAULT_ROWS
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.messages import checked_tools
from hivellm_ort.text.prompt import build_messages
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.thinking import ReasoningSplitter, opens_thinking

__all__ = ["DEFAULT_BATCH_SIZE", "DEFAULT_MAX_TOKENS", "Asked", "Voice", "answer_all", "base_voice"]

DEFAULT_BATCH_SIZE = DEFAULT_ROWS
"""Most requests of a batch that are answered at a time."""

DEFAULT_MAX_TOKENS = 512
"""Most tokens of an answer where neither the caller nor the manifest says."""

_GRAMMARS: dict[str, Callable[[Any], Grammar]] = {
    "grammar": Grammar.gbnf,
    "json_schema": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
}


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
        grammar: the grammar of its package, if it has one.
    """

    base: Base
    adapter: BoundAdapter | None
    manifest: ExpertManifest
    template: ChatTemplate
    eos_token_ids: frozenset[int]
    dialect: str | None
    grammar: Grammar | None

    def ask(self, prompt: str | None, options: GenerateOptions) -> Asked:
        """The request for a prompt.

        Raises:
            OptionTypeError: an option does not exist, or has a value of a wrong type.
            OptionError: one is out of range, or a message or a tool is malformed.
            ContextLengthError: prompt and `max_tokens` do not fit the model's context.
            GrammarError: the grammar has a fault, or there is none where `grammar` is True.
            InferenceError: the chat template fails, or does not show the tools or a message.
        """
        check_prompt(prompt)
        check_options(options)
        grammar = self._grammar(options)
        thinking = options.get("enable_thinking") or False
        messages = build_messages(
            prompt,
            schema=options.get("schema"),
            system=options.get("system"),
            messages=options.get("messages"),
            dialect=self.dialect,
        )
        messages, tools = self.template.fit(messages, checked_tools(options.get("tools")))
        written = self.template.write(messages, self.base.tokenizer, tools=tools, enable_thinking=thinking)
        prompt_ids, inside = written.token_ids, opens_thinking(written.text)
        self._check_tokens(prompt_ids)
        stops = self._stops(options)
        # Under a grammar a published stop counts where the grammar is complete; elsewhere it may cut a good answer.
        gentle = self.manifest.decoding.stop_sequences or ()
        closing = self._single_tokens([*stops, *gentle]) if grammar is not None else frozenset()
        sampling = self._sampling(options)
        cancelled = threading.Event()
        request = Request(
            prompt_ids=prompt_ids,
            adapter=self.adapter,
            sampler=make_sampler(sampling),
            answer=self._answer(stops, () if grammar else gentle, inside, options),
            eos_token_ids=self.eos_token_ids,
            max_tokens=self._max_tokens(prompt_ids, options.get("max_tokens")),
            process=self._process(sampling, options, len(prompt_ids)),
            constraint=self._constraint(grammar, closing, inside, thinking) if grammar else None,
            closing_token_ids=closing,
            logprobs=sampling.logprobs,
            lookup=PromptLookup(prompt_ids) if self._guesses(options) else None,
            cancelled=_cancelled(cancelled, options.get("timeout")),
        )
        values = dataclasses.asdict(sampling) | {"max_tokens": request.max_tokens}
        warnings = self.base.grammars.warnings(grammar) if grammar else ()
        transcript = Transcript(request, sampling=values, expert=self.manifest.name, warnings=warnings)
        return Asked(self.base, transcript, cancelled)

    def _sampling(self, options: GenerateOptions) -> SamplingParams:
        """The caller's values, else the manifest's, else those of SamplingParams."""
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        values: dict[str, Any] = {
            name: getattr(self.manifest.decoding, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        }
        values |= {name: value for name, value in options.items() if name in names and value is not None}
        size = self.base.config.architecture.vocab_size
        for token_id in options.get("logit_bias") or ():
            if not 0 <= token_id < size:
                raise OptionError(
                    f"{argument('logit_bias')} names token {token_id}: the vocabulary has the ids 0 to {size - 1}"
                )
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})

    def _check_tokens(self, prompt_ids: Sequence[int]) -> None:
        """Refuse a prompt that the model cannot read: without a token, or with one that it has no row for."""
        if not prompt_ids:
            raise InferenceError(
                "the chat template and the tokenizer make no token of the prompt: write a text"
            )
        greatest, size = max(prompt_ids), self.base.config.architecture.vocab_size
        if greatest >= size:
            raise InferenceError(
                f"the prompt has token {greatest}, {self.base.tokenizer.id_to_token(greatest)!a}, and the model's "
                f"vocabulary ends at {size - 1}: leave that text out"
            )

    def _process(
        self, sampling: SamplingParams, options: GenerateOptions, prompt_length: int
    ) -> LogitsProcessor | None:
        own = make_processors(
            sampling,
            prompt_length=prompt_length,
            eos_token_ids=self.eos_token_ids,
            token_texts=lambda: self.base.token_texts,
        )
        given = options.get("processors")
        users = checked(given) if given else None
        if own is None or users is None:
            return own or users
        return lambda token_ids, logits: users(token_ids, own(token_ids, logits))

    def _guesses(self, options: GenerateOptions) -> bool:
        """Whether to guess tokens: by default where several at once give exactly what one by one gives."""
        wanted = options.get("prompt_lookup")
        return self.base.config.precision == "fp32" if wanted is None else wanted

    def _stops(self, options: GenerateOptions) -> list[str]:
        given = options.get("stop")
        return [*([given] if isinstance(given, str) else given or ()), *self.template.stops]

    def _answer(
        self, stops: Sequence[str], gentle: Sequence[str], inside: bool, options: GenerateOptions
    ) -> AnswerText:
        matcher = StopMatcher(stops, gentle, include_stop=bool(options.get("include_stop")))
        thinks = inside or self.template.supports_thinking
        reasoning = ReasoningSplitter(inside=inside) if thinks else None
        return AnswerText(IncrementalDetokenizer(self.base.tokenizer), matcher, reasoning)

    def _grammar(self, options: GenerateOptions) -> Grammar | None:
        """The grammar of the request, as strict as it wants it."""
        grammar = self._wanted_grammar(options)
        lenient = options.get("lenient")
        if grammar is None or grammar.kind != "json_schema" or lenient is None:
            return grammar
        return dataclasses.replace(grammar, lenient=lenient)

    def _wanted_grammar(self, options: GenerateOptions) -> Grammar | None:
        """The grammar of the caller, else the package's where its manifest wants it."""
        given: dict[str, Any] = {
            name: value for name, value in options.items() if name in _GRAMMARS and value is not None
        }
        if len(given) > 1:
            named = (
                argument(name, value if isinstance(value, bool) else None) for name, value in given.items()
            )
            raise OptionError(
                f"{' and '.join(named)} are given: an answer has one grammar, so leave out all but one"
            )
        if not given:
            return self.grammar if self.manifest.decoding.use_grammar else None
        ((name, value),) = given.items()
        if name != "grammar" or isinstance(value, str):
            return _GRAMMARS[name](value)
        if value is True and self.grammar is None:
            raise GrammarError(
                f"{argument('grammar', True)}, and {self.manifest.name!r} has none in its package: pass a grammar"
            )
        return self.grammar if value is True else value or None

    def _single_tokens(self, stops: Sequence[str]) -> frozenset[int]:
        """The stops that are one token each."""
        tokenizer = self.base.tokenizer
        encoded = ((stop, tokenizer.encode(stop)) for stop in stops)
        return frozenset(ids[0] for stop, ids in encoded if len(ids) == 1 and tokenizer.decode(ids) == stop)

    def _constraint(
        self, grammar: Grammar, closing: frozenset[int], inside: bool, thinking: bool
    ) -> Constraint:
        constraint = self.base.grammars.compile(
            grammar, end_token_ids=self.eos_token_ids, closing_token_ids=closing
        )
        if not inside and not (thinking and self.template.supports_thinking):
            return constraint
        tokenizer = self.base.tokenizer
        open_id, close_id = map(tokenizer.token_to_id, ("<think>", "</think>"))
        if open_id is None or close_id is None:
            raise GrammarError(
                "a grammar after thinking needs <think> and </think> among the model's tokens, and they are not: "
                f"leave out the grammar, or {argument('enable_thinking')}"
            )
        return AfterThinking(
            constraint,
            open_id=None if inside else open_id,
            close_id=close_id,
            gap=tokenizer.encode("\n\n"),
            end_token_ids=self.eos_token_ids,
        )

    def _max_tokens(self, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"{argument('max_tokens')} is {max_tokens!r}: it must be an integer from 1")
        config = self.base.config
        context, model = config.context, config.architecture.max_position_embeddings
        room = context - len(prompt_ids)
        if room < (max_tokens or 1):
            limit = f"model's context of {context} tokens"
            if context < model:
                limit = f"{context} tokens that the base was exported for (--context)"
            raise ContextLengthError(
                f"a prompt of {len(prompt_ids)} tokens and {argument('max_tokens', max_tokens or 1)} exceed the "
                f"{limit}: shorten the prompt or lower {argument('max_tokens')}"
            )
        return int(max_tokens or 0) or min(self.manifest.decoding.max_new_tokens or DEFAULT_MAX_TOKENS, room)


def base_voice(base: Base) -> Voice:
    """The base model without any expert, in its own words."""
    manifest = ExpertManifest(name=base.config.name, version="", schema_version="2.0", base_models=(), raw={})
    return Voice(
        base=base,
        adapter=base.no_adapter,
        manifest=manifest,
        template=base.template,
        eos_token_ids=base.eos_token_ids | {*end_of_turn_ids(base.template, base.tokenizer)},
        dialect=None,
        grammar=None,
    )


def _cancelled(event: threading.Event, timeout: float | None) -> Callable[[], bool]:
    if timeout is None:
        return event.is_set
    if not timeout > 0:
        raise OptionError(f"{argument('timeout')} is {timeout!r}: it must be a number of seconds above 0")
    end = time.monotonic() + timeout
    return lambda: event.is_set() or time.monotonic() > end


@dataclass(frozen=True)
class Asked:
    """A request to a base that is checked and not begun.

    Attributes:
        base: who answers.
        transcript: what will be collected of the answer.
        cancelled: ends the answer.
    """

    base: Base
    transcript: Transcript
    cancelled: threading.Event

    @property
    def request(self) -> Request:
        """What the decode loop gets."""
        return self.transcript.request

    def submit(self) -> None:
        """Have it answered as soon as its turn comes; where the base was closed it ends with that error."""
        try:
            self.base.scheduler.submit(self.request, self.transcript.add, self.transcript.start)
        except InferenceError as error:
            self.transcript.add(Step(None, error=error), time.perf_counter())

    def abandon(self) -> None:
        """End it as cancelled, instead of `submit`."""
        self.transcript.add(Step(None, finish_reason="cancelled"), time.perf_counter())

    def begin(self) -> TextStream:
        """As `submit`; the text as it comes."""
        self.submit()
        return TextStream(self.transcript, self.cancelled)


def answer_all(asked: Sequence[Asked], batch_size: int) -> list[InferenceResult]:
    """The results of requests, in their order, of each base so many at a time. Whatever happens, all of them end."""
    bases = dict.fromkeys(one.base for one in asked)
    queues = {base: deque(one for one in asked if one.base is base) for base in bases}
    try:
        refuse_to_wait()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise OptionTypeError(f"batch_size is {type(batch_size).__name__}: pass a whole number (int)")
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size!r}: it must be an integer from 1")
        for base, waiting in queues.items():
            base.scheduler.rows = max(base.scheduler.rows, batch_size)
            for _ in range(min(batch_size, len(waiting))):
                _begin_next(waiting)
        return [_awaited(one) for one in asked]
    finally:
        for one in asked:
            one.cancelled.set()
        for waiting in queues.values():
            while (left := _popped(waiting)) is not None:
                left.abandon()


def _begin_next(waiting: deque[Asked]) -> None:
    """Begin the next request that waits, and when it has ended the one after it."""
    while (one := _popped(waiting)) is not None:
        one.submit()
        if not one.transcript.ended.is_set():
            one.transcript.listen(partial(_begin_after, one, waiting))
            return


def _popped(waiting: deque[Asked]) -> Asked | None:
    try:
        return waiting.popleft()
    except IndexError:  # another thread had it
        return None


def _begin_after(one: Asked, waiting: deque[Asked]) -> None:
    if one.transcript.ended.is_set():
        _begin_next(waiting)


def _awaited(one: Asked) -> InferenceResult:
    one.transcript.wait()
    return one.transcript.result()
