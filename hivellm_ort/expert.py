"""One expert: a package, its base model, and generation in three lines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.devices import Device, ProviderOptions
from hivellm_ort.errors import InferenceError, OptionTypeError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.integrity import Policy, Trust, Verdict, check
from hivellm_ort.loading.grammars import find_grammar
from hivellm_ort.loading.graph_check import check_graphs
from hivellm_ort.loading.opening import open_with_progress, read_manifest
from hivellm_ort.loading.own_template import own_template
from hivellm_ort.loading.parts import ExpertParts, find_parts
from hivellm_ort.options import GenerateOptions, ScoreOptions, check_loading, check_prompts, options_of_rows
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.store import Store
from hivellm_ort.paths import StrPath
from hivellm_ort.result import InferenceResult, ScoreResult
from hivellm_ort.serving.base import Base
from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE, run_all
from hivellm_ort.serving.builder import RequestBuilder
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.pool import BASES
from hivellm_ort.serving.stream import AsyncTextStream, TextStream
from hivellm_ort.text.families import template_for
from hivellm_ort.text.prompt import dialect_of
from hivellm_ort.text.template import end_of_turn_ids
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["Expert"]

_LOG = logging.getLogger("hivellm_ort")


class Expert:
    """A loaded expert. Safe to use from several threads at once: every generation has a row of its own.

    Experts of one base share its session in memory, however they were loaded. Close an expert, or use it as a
    context manager, to free what no other uses.

    Attributes:
        manifest: the package's manifest.
        verdict: what its signature is worth.
        adapter: the adapter's weights as they are bound, None where they are merged into the base.
    """

    def __init__(
        self,
        manifest: ExpertManifest,
        verdict: Verdict,
        parts: ExpertParts,
        grammar: Grammar | None,
        *,
        device: Device,
        threads: int | None,
        prefix_cache_bytes: int | None,
    ):
        self.manifest = manifest
        self.verdict = verdict
        self._base = BASES.acquire(
            parts.bundle.folder,
            parts.bundle.config,
            device=device,
            threads=threads,
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self._closed = False
        self.adapter: BoundAdapter | None = None
        try:
            if parts.adapter is not None:
                self.adapter = BoundAdapter(parts.adapter, self.base)
            tokenizer = self._base.tokenizer
            own, eos_token = own_template(parts.folder, parts.bundle.folder)
            template = template_for(parts.model.prompt_template, own or self._base.template, tokenizer)
            if own is not None and template is not own:
                _LOG.warning(
                    "%s: its manifest names the prompt template %r, so the chat template that it brings is not used",
                    manifest.name,
                    parts.model.prompt_template,
                )
            ends = tokenizer.token_to_id(eos_token) if eos_token is not None else None
            self._builder = RequestBuilder(
                base=self._base,
                adapter=self.adapter,
                manifest=manifest,
                template=template,
                eos_token_ids=self._base.eos_token_ids
                | {*end_of_turn_ids(template, tokenizer), *([] if ends is None else [ends])},
                dialect=dialect_of(manifest.capabilities, manifest.decoding.grammar_type),
                grammar=grammar,
            )
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        path: StrPath,
        *,
        device: str | None = None,
        provider_options: ProviderOptions | None = None,
        fallback: bool = False,
        base: StrPath | None = None,
        cache_dir: StrPath | None = None,
        threads: int | None = None,
        trust: Trust | Policy = "warn",
        limits: Limits = DEFAULT_LIMITS,
        prefix_cache_bytes: int | None = None,
    ) -> Expert:
        """Load a `.expert` package, the folder of an unpacked one, or a folder as PEFT saves an adapter.

        A package as `hivellm-ort export` makes it holds its adapter prepared. Of one that holds PEFT's files alone
        the adapter is prepared now, on the base's own weights, and kept in the cache. A PEFT folder without a
        manifest is called after the folder, and is unsigned. A chat template in the package or folder is what prompts
        are written with, before that of the base.

        Args:
            path: the package or folder.
            device: "auto" (the default) takes what is there for the graphs of the base, else "cpu", "cuda", "cuda:1",
                "dml", "dml:0" or "coreml". One that does not start is an error. Of a package for several targets the
                graphs are taken that suit the device.
            provider_options: options of ONNX Runtime's execution provider, as `{"gpu_mem_limit": 2 << 30}`.
            fallback: run on the CPU, with a warning, where the device is unavailable.
            base: a base bundle to use instead of the packaged one. A package without a base needs it, unless a
                bundle with the digest it states is in a folder `base` beside it, or one of the base its manifest
                names in the cache or in the folder `models` there.
            cache_dir: where packages are unpacked; the platform's cache folder, or `HIVELLM_HOME`, by default.
            threads: intra-op threads of ONNX Runtime; one per physical core by default.
            trust: "warn" logs a warning where no key you trust has signed the package, "require" refuses it and
                reads every file again to compare it, "off" loads even what a failed signature says was changed;
                or a `Trust` with keys of its own. But with "off", graphs that did not come in a package signed by
                such a key may have only what the exporter writes.
            limits: what the package may unpack to.
            prefix_cache_bytes: most bytes of keys and values that the base keeps of earlier prompts, for all its
                experts; 256 MiB by default. A base that is in memory already has its number.

        Raises:
            LoadError: the package, its signature, its manifest, its adapter, its grammar, its base or the device
                cannot be used; nothing stays loaded.
            OptionTypeError, OptionError (TypeError, ValueError): an argument has a wrong type or value, or the base
                is in memory with another `prefix_cache_bytes`.
        """
        check_loading(fallback=fallback, threads=threads, prefix_cache_bytes=prefix_cache_bytes)
        asked = Device.of(device, provider_options, fallback=fallback)
        if not isinstance(trust, str | Trust):
            raise OptionTypeError(
                f"trust is {type(trust).__name__}: pass 'require', 'warn', 'off' or a Trust"
            )
        if not isinstance(limits, Limits):
            raise OptionTypeError(f"limits is {type(limits).__name__}: pass a Limits")
        trust = Trust(trust) if isinstance(trust, str) else trust
        checking: Check = "digest" if trust.policy == "require" else "size"
        path, given = Path(path), Path(base) if base is not None else None
        # Until the session is open nothing that it was found from is removed.
        with Store(Path(cache_dir) if cache_dir is not None else None) as store:
            package = open_with_progress(path, store, limits=limits, checking=checking)
            verdict = check(package, trust, where=str(path))
            manifest = read_manifest(package)
            parts = find_parts(
                package, manifest, store, given, checking, device=asked, beside=path.absolute().parent
            )
            signed = verdict.status == "verified" and parts.packaged
            if not signed and trust.policy != "off":
                check_graphs(parts.bundle)
            return cls(
                manifest,
                verdict,
                parts,
                find_grammar(package, manifest),
                device=asked,
                threads=threads,
                prefix_cache_bytes=prefix_cache_bytes,
            )

    @property
    def base(self) -> DecoderConfig:
        """What the base bundle is."""
        return self._base.config

    @property
    def shared_base(self) -> Base:
        """The base in memory, which other experts use too."""
        return self._base

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the base: `encode`, `decode`, `token_to_id`, `id_to_token`, `vocab_size`, `special_ids`.

        `logit_bias` takes its ids:

        >>> never = {token: float("-inf") for token in expert.tokenizer.encode(" maybe")}  # doctest: +SKIP
        >>> expert.generate("Is 7 prime?", logit_bias=never)  # doctest: +SKIP
        """
        return self._base.tokenizer

    @property
    def name(self) -> str:
        """The expert's name from its manifest."""
        return self.manifest.name

    def generate(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> InferenceResult:
        """Answer `prompt`; None where `messages` ends with the question.

        The options are those of `GenerateOptions`.

        Raises:
            OptionTypeError (TypeError): an option does not exist, or has a value of a wrong type.
            OptionError (ValueError): an option is out of range, or a message or a tool is malformed.
            ContextLengthError: prompt and `max_tokens` do not fit the model's context.
            GrammarError: a grammar has a fault, or the answer cannot go on under it; its `text` is the answer so far.
            InferenceError: the expert is closed, or its chat template fails, or does not show the tools or a message.
        """
        return run_all([(self._base.scheduler, self.builder.build(prompt, options))], 1)[0]

    def generate_stream(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> TextStream:
        """As `generate`, piece by piece: iterate over the text, then read `.result`."""
        generation = self.builder.build(prompt, options)
        self._base.scheduler.submit(generation)
        return TextStream(generation)

    def generate_batch(
        self, prompts: Sequence[str | None], *, batch_size: int = DEFAULT_BATCH_SIZE, **options: Any
    ) -> list[InferenceResult]:
        """Answer several prompts at once; each answer is the one that `generate` gives.

        Args:
            prompts: the prompts, of any lengths.
            batch_size: most rows in memory; further prompts wait for a free one.
            options: those of `GenerateOptions`, which says when a list has one value per prompt; any other value
                holds for all.

        Returns:
            The results, in the order of the prompts.

        Raises:
            ExpertError: as `generate`; no prompt is answered then.
        """
        check_prompts(prompts)
        rows = options_of_rows(options, len(prompts))
        builder = self.builder
        generations = [builder.build(prompt, own) for prompt, own in zip(prompts, rows, strict=True)]
        return run_all([(self._base.scheduler, generation) for generation in generations], batch_size)

    def score(
        self, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """How likely each of a few given answers to `prompt` is: for classification, routing and decisions.

        >>> expert.score("Is this SQL valid? SELECT 1", ["yes", "no"]).best.text  # doctest: +SKIP

        The prompt is read once. Answers of one token take no further forward pass, longer ones one each at most.
        Probabilities are the model's own: no temperature, penalty or grammar changes them.

        Args:
            prompt: the question; None where `messages` ends with it.
            answers: 1 to 1,000 different texts.
            options: those of `ScoreOptions`.

        Raises:
            OptionTypeError (TypeError), OptionError (ValueError): an option or an answer is wrong.
            ContextLengthError: prompt and answers do not fit the model's context.
            InferenceError: as `generate`, or the time is over.
        """
        generation = self.builder.build_score(prompt, answers, options)
        run_all([(self._base.scheduler, generation)], 1)
        return generation.score_result(answers)

    async def ascore(
        self, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """As `score`, without blocking the event loop; cancelling the task ends the request."""
        generation: list[Generation] = []

        def start() -> TextStream:
            generation.append(self.builder.build_score(prompt, answers, options))
            self._base.scheduler.submit(generation[0])
            return TextStream(generation[0])

        async for _ in AsyncTextStream(start):
            pass
        return generation[0].score_result(answers)

    async def agenerate(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """As `generate`, without blocking the event loop; cancelling the task ends the generation."""
        stream = self.agenerate_stream(prompt, **options)
        async for _ in stream:
            pass
        return stream.result

    def agenerate_stream(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """As `generate_stream`, for `async for`; what `generate_stream` raises comes with the first piece."""
        return AsyncTextStream(lambda: self.generate_stream(prompt, **options))

    @property
    def builder(self) -> RequestBuilder:
        """Makes this expert's generations, for the scheduler of `shared_base` to run.

        Raises:
            InferenceError: the expert is closed, or of another process.
        """
        if self._closed:
            raise InferenceError(f"expert {self.name!r} is closed: load it again")
        self._base.scheduler.home.require()
        return self._builder

    def close(self) -> None:
        """Let go of the base; its memory is freed when no other expert uses it."""
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
