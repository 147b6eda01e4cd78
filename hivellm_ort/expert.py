"""One expert: an adapter on a base model, loaded from a package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Unpack

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import InferenceError
from hivellm_ort.loading.opening import open_with_progress, verify
from hivellm_ort.loading.options import LoadOptions, LoadSettings, checked_path
from hivellm_ort.loading.parts import ExpertParts, find_parts
from hivellm_ort.options import GenerateOptions, ScoreOptions, check_prompts, options_of_rows
from hivellm_ort.paths import StrPath
from hivellm_ort.result import InferenceResult, ScoreResult
from hivellm_ort.serving.base import Base
from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE, run_all
from hivellm_ort.serving.builder import RequestBuilder
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.pool import BASES
from hivellm_ort.serving.stream import AsyncTextStream, TextStream, score_result
from hivellm_ort.text.families import template_for
from hivellm_ort.text.prompt import dialect_of
from hivellm_ort.text.template import end_of_turn_ids
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["Expert"]

_LOG = logging.getLogger("hivellm_ort")


class Expert:
    """A loaded expert. Thread-safe: every request has a row of its own.

    All experts of one base share its session. Close an expert, or use it as a context manager, to free its memory.

    Attributes:
        manifest: The package's manifest.
        verdict: The result of checking its signature.
        adapter: The adapter's weights, ready to be bound; None if they are merged into the base.
    """

    def __init__(self, parts: ExpertParts, settings: LoadSettings):
        self.manifest = parts.package.manifest
        self.verdict = parts.package.verdict
        self._base = BASES.acquire(
            parts.bundle.folder,
            parts.bundle.config,
            device=settings.device,
            threads=settings.threads,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            recall=parts.recall,
        )
        self._closed = False
        self.adapter: BoundAdapter | None = None
        try:
            if parts.adapter is not None:
                self.adapter = BoundAdapter(parts.adapter, self.base)
            self._builder = self._make_builder(parts)
        except BaseException:
            self.close()
            raise

    def _make_builder(self, parts: ExpertParts) -> RequestBuilder:
        base, manifest, tokenizer = self._base, self.manifest, self._base.tokenizer
        own, named = base.compile_template(parts.template), parts.model.prompt_template
        template = template_for(named, own or base.template, tokenizer)
        if own is not None and template is not own:
            _LOG.warning(
                "%s: its manifest names the prompt template %r, so its own chat template is not used",
                manifest.name,
                named,
            )
        ends = {*end_of_turn_ids(template, tokenizer)}
        eos_token = parts.template.tokens.get("eos_token")
        if eos_token is not None and (token_id := tokenizer.token_to_id(eos_token)) is not None:
            ends.add(token_id)
        return RequestBuilder(
            base=base,
            adapter=self.adapter,
            manifest=manifest,
            template=template,
            eos_token_ids=base.eos_token_ids | ends,
            dialect=dialect_of(manifest.capabilities, manifest.decoding.grammar_type),
            grammar=parts.grammar,
        )

    @classmethod
    def load(cls, path: StrPath, **options: Unpack[LoadOptions]) -> Expert:
        """Load a `.expert` package, the folder of an unpacked package, or a folder that PEFT saved.

        A package from `hivellm-ort export` has a prepared adapter. If a package has only the files of PEFT, the
        adapter is prepared now with the base's own weights, and cached. A PEFT folder without a manifest is unsigned,
        and the expert is named after the folder. A chat template in the package or folder is used instead of the
        base's.

        Args:
            path: The package or folder.
            options: Options of `LoadOptions`, such as `device`, `base`, `trust` and `threads`.

        Raises:
            LoadError: The package, its signature, its manifest, its adapter, its grammar, its base or the device
                cannot be used. Nothing stays loaded.
            OptionTypeError (TypeError): An option does not exist, or has a value of a wrong type.
            OptionError (ValueError): An option is out of range.
        """
        settings = LoadSettings.of(options)
        where = checked_path(path, "path")
        # No other process removes the files of the expert before its session is open.
        with settings.store() as store:
            files = open_with_progress(where, store, limits=settings.limits, checking=settings.check)
            package = verify(files, where, settings.trust)
            return cls(find_parts(package, store, settings), settings)

    @property
    def base(self) -> DecoderConfig:
        """The `decoder.json` of the base bundle."""
        return self._base.config

    @property
    def shared_base(self) -> Base:
        """The base in memory. Other experts share it."""
        return self._base

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the base: `encode`, `decode`, `token_to_id`, `id_to_token`, `vocab_size`, `special_ids`.

        Use its ids in `logit_bias`:

        >>> never = {token: float("-inf") for token in expert.tokenizer.encode(" maybe")}  # doctest: +SKIP
        >>> expert.generate("Is 7 prime?", logit_bias=never)  # doctest: +SKIP
        """
        return self._base.tokenizer

    @property
    def name(self) -> str:
        """The expert's name from its manifest."""
        return self.manifest.name

    def generate(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> InferenceResult:
        """Answer a prompt.

        Args:
            prompt: The question; None if `messages` ends with it.
            options: See `GenerateOptions`.

        Raises:
            OptionTypeError (TypeError): An option does not exist, or has a value of a wrong type.
            OptionError (ValueError): An option is out of range, or a message or a tool is malformed.
            ContextLengthError: Prompt and `max_tokens` do not fit the model's context.
            GrammarError: A grammar has a fault, or allows no further token. Its `text` is the answer so far.
            InferenceError: The expert is closed, or its chat template fails, or does not show the tools or a message.
        """
        return run_all([(self._base.scheduler, self.builder.build(prompt, options))], 1)[0]

    def generate_stream(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> TextStream:
        """Answer as `generate` does, piece by piece: iterate over the text, then read `.result`."""
        return self._started(self.builder.build(prompt, options))

    def generate_batch(
        self, prompts: Sequence[str | None], *, batch_size: int = DEFAULT_BATCH_SIZE, **options: Any
    ) -> list[InferenceResult]:
        """Answer several prompts at once. Each answer is the same as that of `generate`.

        Args:
            prompts: The prompts, of any lengths.
            batch_size: Most prompts that run at once; the others wait for a free row.
            options: See `GenerateOptions`, also for lists with one value per prompt. Any other value is used for all
                prompts.

        Returns:
            The results, in the order of the prompts.

        Raises:
            ExpertError: As for `generate`. No prompt is answered then.
        """
        check_prompts(prompts)
        rows = options_of_rows(options, len(prompts))
        builder = self.builder
        generations = [builder.build(prompt, own) for prompt, own in zip(prompts, rows, strict=True)]
        return run_all([(self._base.scheduler, generation) for generation in generations], batch_size)

    def score(
        self, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """Return how likely each of a few given answers is, for classification, routing and decisions.

        >>> expert.score("Is this SQL valid? SELECT 1", ["yes", "no"]).best.text  # doctest: +SKIP

        The prompt is read once. An answer of one token needs no further forward pass, a longer one at most one.
        Probabilities are those of the model: temperature, penalties and grammars do not change them.

        Args:
            prompt: The question; None if `messages` ends with it.
            answers: 1 to 1,000 different texts.
            options: See `ScoreOptions`.

        Raises:
            OptionTypeError (TypeError), OptionError (ValueError): An option or an answer is wrong.
            ContextLengthError: Prompt and answers do not fit the model's context.
            InferenceError: As for `generate`, or the timeout is over.
        """
        generation = self.builder.build_score(prompt, answers, options)
        run_all([(self._base.scheduler, generation)], 1)
        return generation.score_result(answers)

    async def ascore(
        self, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """Score as `score` does, without blocking the event loop. Cancelling the task ends the request."""
        return await score_result(
            lambda: self._started(self.builder.build_score(prompt, answers, options)), answers
        )

    async def agenerate(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """Answer as `generate` does, without blocking the event loop. Cancelling the task ends the generation."""
        stream = self.agenerate_stream(prompt, **options)
        async for _ in stream:
            pass
        return stream.result

    def agenerate_stream(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """Answer as `generate_stream` does, for `async for`. Its errors are raised with the first piece."""
        return AsyncTextStream(lambda: self.generate_stream(prompt, **options))

    @property
    def builder(self) -> RequestBuilder:
        """The builder of this expert's generations, which the scheduler of `shared_base` runs.

        Raises:
            InferenceError: The expert is closed, or belongs to another process.
        """
        if self._closed:
            raise InferenceError(f"expert {self.name!r} is closed: load it again")
        self._base.scheduler.home.require()
        return self._builder

    def _started(self, generation: Generation) -> TextStream:
        self._base.scheduler.submit(generation)
        return TextStream(generation)

    def close(self) -> None:
        """Release the base. Its memory is freed when no other expert uses it."""
        if not self._closed:
            self._closed = True
            if not self._base.scheduler.home.here:
                return
            if self.adapter is not None:
                self._base.release(self.adapter)
            BASES.release(self._base)

    def __enter__(self) -> Expert:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
