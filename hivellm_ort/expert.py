"""One expert: a package, its base model, and generation in three lines."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

from hivellm_ort.base import BasePool
from hivellm_ort.contract import DecoderConfig
from hivellm_ort.decoding.loop import Step, decode
from hivellm_ort.decoding.sampler import Sampler, SamplingParams, make_sampler
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.decoding.stream import Clock, TextStream
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.errors import ContextLengthError, InferenceError
from hivellm_ort.integrity import Policy, Trust, Verdict, check
from hivellm_ort.loading.opening import open_with_progress
from hivellm_ort.loading.parts import ExpertParts, find_parts
from hivellm_ort.options import GenerateOptions
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.store import Store
from hivellm_ort.result import InferenceResult
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.prompt import build_messages, dialect_of

__all__ = ["Expert"]

DEFAULT_MAX_TOKENS = 512
_BASES = BasePool()

_T = TypeVar("_T")
StrPath = str | os.PathLike[str]


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
        *,
        device: str | None,
        threads: int | None,
    ):
        self.manifest = manifest
        self.verdict = verdict
        self._dialect = dialect_of(manifest.capabilities, manifest.decoding.grammar_type)
        self._base = _BASES.acquire(parts.bundle.folder, parts.bundle.config, device=device, threads=threads)
        self._closed = False
        self.adapter: BoundAdapter | None = None
        try:
            if parts.adapter is not None:
                self.adapter = BoundAdapter(parts.adapter, self.base)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        path: StrPath,
        *,
        device: str | None = None,
        base: StrPath | None = None,
        cache_dir: StrPath | None = None,
        threads: int | None = None,
        trust: Trust | Policy = "warn",
        limits: Limits = DEFAULT_LIMITS,
    ) -> Expert:
        """Load a `.expert` package, or the folder of an unpacked one.

        A package as `hivellm-ort export` makes it holds its adapter prepared. Of one that holds PEFT's files alone
        the adapter is prepared now, on the base's own weights, and kept in the cache.

        Args:
            path: the package.
            device: None or "auto" for what the package was exported for, else "cpu".
            base: a base bundle to use instead of the packaged one. A package without a base needs it, unless a
                bundle of the base its manifest names is in the cache or in the folder `models` there.
            cache_dir: where packages are unpacked; the platform's cache folder, or `HIVELLM_HOME`, by default.
            threads: intra-op threads of ONNX Runtime; one per physical core by default.
            trust: "warn" logs a warning where no key you trust has signed the package, "require" refuses it and
                reads every file again to compare it, "off" loads even what a failed signature says was changed;
                or a `Trust` with keys of its own.
            limits: what the package may unpack to.

        Raises:
            LoadError: the package, its signature, its manifest, its adapter or its base cannot be used; nothing
                stays loaded.
        """
        trust = Trust(trust) if isinstance(trust, str) else trust
        store = Store(Path(cache_dir) if cache_dir is not None else None)
        checking: Check = "digest" if trust.policy == "require" else "size"
        package = open_with_progress(Path(path), store, limits=limits, checking=checking)
        verdict = check(package, trust, where=str(path))
        manifest = ExpertManifest.from_file(package.root / MANIFEST)
        parts = find_parts(package, manifest, store, Path(base) if base is not None else None, checking)
        return cls(manifest, verdict, parts, device=device, threads=threads)

    @property
    def base(self) -> DecoderConfig:
        """What the base bundle is."""
        return self._base.config

    @property
    def name(self) -> str:
        """The expert's name from its manifest."""
        return self.manifest.name

    def generate(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> InferenceResult:
        """Answer `prompt`; None where `messages` ends with the question.

        The options are those of `GenerateOptions`.

        Raises:
            ValueError: an option is out of range.
            ContextLengthError: prompt and `max_tokens` do not fit the model's context.
            InferenceError: the expert is closed, or its chat template fails.
        """
        stream = self.generate_stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def generate_stream(
        self,
        prompt: str | None = None,
        *,
        schema: str | None = None,
        system: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> TextStream:
        """As `generate`, piece by piece: iterate over the text, then read `.result`."""
        if self._closed:
            raise InferenceError(f"expert {self.name!r} is closed: load it again")
        conversation = build_messages(
            prompt, schema=schema, system=system, messages=messages, dialect=self._dialect
        )
        defaults = self.manifest.decoding
        sampling = SamplingParams(
            temperature=_first(temperature, defaults.temperature, 0.0),
            top_p=_first(top_p, defaults.top_p, 1.0),
            top_k=_first(top_k, defaults.top_k, 0),
            seed=seed,
        )
        stops = StopMatcher([stop] if isinstance(stop, str) else list(stop or ()))
        prompt_ids = self._base.tokenizer.encode(self._base.template.render(conversation))
        limit = self._room_for(prompt_ids, max_tokens)
        clock = Clock()
        steps = self._steps(prompt_ids, make_sampler(sampling), stops, limit, clock)
        return TextStream(steps, clock=clock, prompt_tokens=len(prompt_ids), expert=self.name)

    def close(self) -> None:
        """Let go of the base; its memory is freed when no other expert uses it."""
        if not self._closed:
            self._closed = True
            if self.adapter is not None:
                self._base.engine.forget(self.adapter)
            _BASES.release(self._base)

    def __enter__(self) -> Expert:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _room_for(self, prompt_ids: list[int], max_tokens: int | None) -> int:
        if max_tokens is not None and not (isinstance(max_tokens, int) and max_tokens >= 1):
            raise ValueError(f"max_tokens is {max_tokens!r}: it must be an integer from 1")
        context = self.base.architecture.max_position_embeddings
        room = context - len(prompt_ids)
        if room < (max_tokens or 1):
            raise ContextLengthError(
                f"a prompt of {len(prompt_ids)} tokens and max_tokens={max_tokens or 1} exceed the model's context "
                f"of {context} tokens: shorten the prompt or lower max_tokens"
            )
        return max_tokens or min(
            _first(None, self.manifest.decoding.max_new_tokens, DEFAULT_MAX_TOKENS), room
        )

    def _steps(
        self, prompt_ids: list[int], sampler: Sampler, stops: StopMatcher, max_tokens: int, clock: Clock
    ) -> Generator[Step]:
        row = self._base.engine.decoder(self.adapter, capacity=len(prompt_ids) + min(max_tokens, 256))
        clock.swap = row.swap_seconds
        try:
            yield from decode(
                row,
                prompt_ids,
                detokenizer=IncrementalDetokenizer(self._base.tokenizer),
                sampler=sampler,
                stops=stops,
                eos_token_ids=self._base.eos_token_ids,
                max_tokens=max_tokens,
            )
        finally:
            self._base.engine.release(row)


def _first(given: _T | None, manifest: _T | None, default: _T) -> _T:
    return given if given is not None else manifest if manifest is not None else default
