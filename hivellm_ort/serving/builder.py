"""Makes a generation from a prompt and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import make_processors, user_processors
from hivellm_ort.decoding.sampler import LogitsProcessor
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import ContextLengthError, GrammarError, InferenceError, OptionError, argument
from hivellm_ort.grammar.after_thinking import AfterThinking
from hivellm_ort.grammar.calls import CallsGrammar
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.options import GenerateOptions, ScoreOptions, check_answers, check_options, check_prompt
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.serving.base import Base
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.request import GenerationRequest
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.messages import checked_tools, function_of
from hivellm_ort.text.prompt import build_messages
from hivellm_ort.text.reasoning import ReasoningSplitter, opens_thinking, think_token_ids
from hivellm_ort.text.template import ChatTemplate, Prompt, end_of_turn_ids
from hivellm_ort.tools.choice import ToolChoice, build_calls_grammar, parse_tool_choice
from hivellm_ort.tools.formats import CallFormat, format_of

__all__ = ["DEFAULT_MAX_TOKENS", "RequestBuilder"]

DEFAULT_MAX_TOKENS = 512
"""Most tokens of an answer if neither caller nor manifest sets a limit."""

_PROMPT_OPTIONS = ("schema", "system", "messages", "tools", "enable_thinking")

_GRAMMARS: dict[str, Callable[[Any], Grammar]] = {
    "grammar": Grammar.gbnf,
    "json_schema": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
}


@dataclass(frozen=True)
class RequestBuilder:
    """Makes generations from prompts and options, for one base, adapter, manifest and chat template.

    Attributes:
        base: The base model.
        adapter: The adapter; None if it is merged into the base.
        manifest: The manifest of the expert.
        template: The chat template.
        eos_token_ids: Tokens that end an answer: those of the base and of the template.
        dialect: Text of the system message if the caller gives only a schema.
        grammar: The grammar of the package, if any.
    """

    base: Base
    adapter: BoundAdapter | None
    manifest: ExpertManifest
    template: ChatTemplate
    eos_token_ids: frozenset[int]
    dialect: str | None
    grammar: Grammar | None

    @classmethod
    def for_base(cls, base: Base) -> RequestBuilder:
        """Make the builder of the base model without an expert."""
        manifest = ExpertManifest(
            name=base.config.name, version="", schema_version="2.0", base_models=(), raw={}
        )
        return cls(
            base=base,
            adapter=base.no_adapter,
            manifest=manifest,
            template=base.template,
            eos_token_ids=base.eos_token_ids | {*end_of_turn_ids(base.template, base.tokenizer)},
            dialect=None,
            grammar=None,
        )

    def build(self, prompt: str | None, options: GenerateOptions) -> Generation:
        """Make the generation for a prompt. It is not submitted yet.

        Raises:
            OptionTypeError: An option does not exist, or has a wrong type.
            OptionError: An option is out of range, or a message or a tool is malformed.
            ContextLengthError: Prompt and `max_tokens` exceed the model's context.
            GrammarError: The grammar is invalid, or `grammar` is True and the package has none.
            InferenceError: The chat template fails, or drops the tools or a message.
        """
        check_prompt(prompt)
        check_options(options)
        tools = checked_tools(options.get("tools"))
        choice = parse_tool_choice(options.get("tool_choice"), tools)
        thinking = options.get("enable_thinking") or False
        # Before the grammar: if the template does not show the tools, no other `tool_choice` helps.
        encoded = self._encode_prompt(prompt, options, thinking=thinking)
        call_format = format_of(self.template) if choice.mode != "none" else None
        grammar = self._held_to_tools(tools, choice, call_format, options)
        free = isinstance(grammar, CallsGrammar) and grammar.free and grammar.answer is None
        prompt_ids, inside = encoded.token_ids, opens_thinking(encoded.text)
        stops = self._stops(options)
        # Under a grammar, the manifest's stops count only when it is complete. Elsewhere they may cut answers.
        soft = self.manifest.decoding.stop_sequences or ()
        held = grammar is not None and not free
        closing = self._single_tokens([*stops, *soft]) if held else frozenset()
        sampling = self._sampling(options)
        request = GenerationRequest(
            prompt_ids=prompt_ids,
            max_tokens=self._max_tokens(prompt_ids, options.get("max_tokens")),
            eos_token_ids=self.eos_token_ids,
            sampling=sampling,
            closing_token_ids=closing,
            timeout=options.get("timeout"),
            expert=self.manifest.name,
            warnings=self.base.grammars.warnings(grammar) if grammar else (),
            call_format=call_format,
            tool_names=tuple(function_of(tool)["name"] for tool in tools or ()),
        )
        return Generation(
            request,
            answer=self._answer(stops, () if held else soft, inside, options, call_format),
            adapter=self.adapter,
            process=self._process(sampling, options, len(prompt_ids)),
            constraint=self._constraint(grammar, closing, inside, thinking) if grammar else None,
            lookup=PromptLookup(prompt_ids) if self._uses_lookup(options) else None,
        )

    def prompt_ids(self, prompt: str | None, options: GenerateOptions) -> list[int]:
        """Return the tokens of the prompt that `build` encodes. Raises as `build`."""
        check_prompt(prompt)
        check_options(options)
        return self._encode_prompt(
            prompt, options, thinking=options.get("enable_thinking") or False
        ).token_ids

    def build_score(self, prompt: str | None, answers: Sequence[str], options: ScoreOptions) -> Generation:
        """Make the generation that scores given answers. It is not submitted yet. Raises as `build`."""
        check_prompt(prompt)
        check_answers(answers)
        check_options(options, ScoreOptions)
        encoded = self._encode_prompt(prompt, options, thinking=False)
        tokens = tuple(tuple(self.base.tokenizer.encode(answer)) for answer in answers)
        for index, token_ids in enumerate(tokens):
            self._check_tokens(token_ids, f"answers[{index}]")
        self._max_tokens(encoded.token_ids, max(map(len, tokens)))  # the longest answer must fit
        request = GenerationRequest(
            prompt_ids=encoded.token_ids,
            max_tokens=1,
            eos_token_ids=self.eos_token_ids,
            timeout=options.get("timeout"),
            expert=self.manifest.name,
            answers=tokens,
        )
        return Generation(request, answer=self._answer((), (), False, {}), adapter=self.adapter)

    def _encode_prompt(
        self, question: str | None, options: GenerateOptions | ScoreOptions, *, thinking: bool
    ) -> Prompt:
        """Render and encode the prompt. Tokens that are given need no text."""
        given = options.get("prompt_ids")
        if given is not None:
            return Prompt("", self._given_tokens(question, given, options))
        messages = build_messages(
            question,
            schema=options.get("schema"),
            system=options.get("system"),
            messages=options.get("messages"),
            dialect=self.dialect,
        )
        messages, tools = self.template.fit(messages, checked_tools(options.get("tools")))
        prompt = self.template.encode(messages, self.base.tokenizer, tools=tools, enable_thinking=thinking)
        self._check_tokens(prompt.token_ids, "the prompt")
        return prompt

    def _given_tokens(
        self, question: str | None, token_ids: Sequence[int], options: GenerateOptions | ScoreOptions
    ) -> list[int]:
        """Return the prompt of `prompt_ids`. It must exclude other prompts, and be in the vocabulary."""
        beside = [name for name in _PROMPT_OPTIONS if options.get(name) is not None]
        if question is not None:
            beside.insert(0, "prompt")
        if beside:
            raise OptionError(
                f"{argument('prompt_ids')} are the whole prompt: leave out {', '.join(map(argument, beside))}"
            )
        size = self.base.config.architecture.vocab_size
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < size:
                raise OptionError(
                    f"{argument('prompt_ids')}[{index}] is {token_id}: the vocabulary has the ids 0 to {size - 1}"
                )
        if not token_ids:
            raise OptionError(f"{argument('prompt_ids')} is empty: give at least one token")
        return [int(token_id) for token_id in token_ids]

    def _sampling(self, options: GenerateOptions) -> SamplingParams:
        """Return the sampling parameters: the caller's values, else the manifest's, else the defaults."""
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

    def _check_tokens(self, token_ids: Sequence[int], what: str) -> None:
        """Refuse a text without tokens, or with tokens beyond the model's vocabulary."""
        if not token_ids:
            raise InferenceError(f"the tokenizer makes no token of {what}: write a text")
        greatest, size = max(token_ids), self.base.config.architecture.vocab_size
        if greatest >= size:
            raise InferenceError(
                f"{what} has token {greatest}, {self.base.tokenizer.id_to_token(greatest)!a}, and the model's "
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
        users = user_processors(given) if given else None
        if own is None or users is None:
            return own or users
        return lambda token_ids, logits: users(token_ids, own(token_ids, logits))

    def _uses_lookup(self, options: GenerateOptions) -> bool:
        """Return whether to use prompt lookup. Default: in fp32, where it does not change the answer."""
        wanted = options.get("prompt_lookup")
        return self.base.config.precision == "fp32" if wanted is None else wanted

    def _stops(self, options: GenerateOptions) -> list[str]:
        given = options.get("stop")
        return [*([given] if isinstance(given, str) else given or ()), *self.template.stops]

    def _answer(
        self,
        stops: Sequence[str],
        soft: Sequence[str],
        inside: bool,
        options: GenerateOptions,
        call_format: CallFormat | None = None,
    ) -> AnswerText:
        matcher = StopMatcher(stops, soft, include_stop=bool(options.get("include_stop")))
        # Of a prompt in tokens nobody knows whether it opened a think block.
        thinks = options.get("prompt_ids") is None and (inside or self.template.supports_thinking)
        reasoning = ReasoningSplitter(inside=inside) if thinks else None
        tokenizer = self.base.tokenizer
        # What calls are read by must be in the text.
        ids = {tokenizer.token_to_id(marker) for marker in (call_format.markers if call_format else ())}
        kept = {one for one in ids if one is not None and tokenizer.is_special(one)}
        return AnswerText(IncrementalDetokenizer(tokenizer, kept=kept), matcher, reasoning)

    def _held_to_tools(
        self,
        tools: list[dict[str, Any]] | None,
        choice: ToolChoice,
        call_format: CallFormat | None,
        options: GenerateOptions,
    ) -> Grammar | CallsGrammar | None:
        """Return the grammar of the request: of its answer, of its calls, or of both."""
        grammar = self._grammar(options)
        if not tools or choice.mode == "none" or (grammar is not None and not choice.given):
            return grammar
        several = options.get("parallel_tool_calls") is not False
        return build_calls_grammar(call_format, tools, choice, several=several, answer=grammar) or grammar

    def _grammar(self, options: GenerateOptions) -> Grammar | None:
        """Return the grammar of the request, with its option `lenient`."""
        grammar = self._wanted_grammar(options)
        lenient = options.get("lenient")
        if grammar is None or grammar.kind != "json_schema" or lenient is None:
            return grammar
        return dataclasses.replace(grammar, lenient=lenient)

    def _wanted_grammar(self, options: GenerateOptions) -> Grammar | None:
        """Return the caller's grammar, else the package's if its manifest says so."""
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
        """Return the tokens of the stops that are a single token."""
        tokenizer = self.base.tokenizer
        encoded = ((stop, tokenizer.encode(stop)) for stop in stops)
        return frozenset(ids[0] for stop, ids in encoded if len(ids) == 1 and tokenizer.decode(ids) == stop)

    def _constraint(
        self, grammar: Grammar | CallsGrammar, closing: frozenset[int], inside: bool, thinking: bool
    ) -> Constraint:
        constraint = self.base.grammars.compile(
            grammar, end_token_ids=self.eos_token_ids, closing_token_ids=closing
        )
        if not inside and not (thinking and self.template.supports_thinking):
            return constraint
        tokenizer = self.base.tokenizer
        tags = think_token_ids(tokenizer)
        if tags is None:
            if isinstance(grammar, CallsGrammar) and grammar.free and grammar.answer is None:
                return constraint  # a think block is text like any other
            raise GrammarError(
                "a grammar after thinking needs <think> and </think> among the model's tokens, and they are not: "
                f"leave out the grammar, or {argument('enable_thinking')}"
            )
        return AfterThinking(
            constraint,
            open_id=None if inside else tags[0],
            close_id=tags[1],
            gap=tokenizer.encode("\n\n"),
            end_token_ids=self.eos_token_ids,
            forbid_spelled_tag=self.base.token_texts.forbid(
                [str(tokenizer.id_to_token(tags[1]))], prompt_length=0, end_token_ids=[tags[1]]
            ),
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
