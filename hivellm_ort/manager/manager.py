"""Several experts on shared bases."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypedDict, Unpack

from hivellm_ort.decoding.stream import AsyncTextStream, TextStream
from hivellm_ort.errors import LoadError, UnknownExpertError
from hivellm_ort.expert import Expert, StrPath
from hivellm_ort.integrity import Policy, Trust, Verdict
from hivellm_ort.options import GenerateOptions, options_of_rows
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.requests import DEFAULT_BATCH_SIZE, answer_all
from hivellm_ort.result import InferenceResult

__all__ = ["ExpertInfo", "ExpertManager"]


class _Loading(TypedDict):
    device: str | None
    cache_dir: StrPath | None
    threads: int | None
    trust: Trust | Policy
    limits: Limits
    prefix_cache_bytes: int | None


@dataclass(frozen=True)
class ExpertInfo:
    """A loaded expert in a list.

    Attributes:
        name: the name it was loaded under.
        package: name of its manifest.
        version: version of its manifest.
        base: short name of the base model.
        base_sha256: digest of the base bundle; equal digests share one session.
        verdict: what its signature is worth.
        kind: adapter kind, `merged` where it is folded into the base.
        rank: adapter rank, 0 where merged.
        adapter_bytes: memory of the adapter's weights.
    """

    name: str
    package: str
    version: str
    base: str
    base_sha256: str
    verdict: Verdict
    kind: str
    rank: int
    adapter_bytes: int


class ExpertManager:
    """Experts by name, one session per base.

    Changing between experts of one base binds the other adapter's weights and nothing else.

    Args:
        device: for every expert, see `Expert.load`.
        cache_dir: see `Expert.load`.
        threads: see `Expert.load`.
        trust: see `Expert.load`.
        limits: see `Expert.load`.
        prefix_cache_bytes: see `Expert.load`.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        cache_dir: StrPath | None = None,
        threads: int | None = None,
        trust: Trust | Policy = "warn",
        limits: Limits = DEFAULT_LIMITS,
        prefix_cache_bytes: int | None = None,
    ):
        self._loading = _Loading(
            device=device,
            cache_dir=cache_dir,
            threads=threads,
            trust=trust,
            limits=limits,
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self._lock = threading.Lock()
        self._experts: dict[str, Expert] = {}

    def load_expert(self, name: str, path: StrPath, *, base: StrPath | None = None) -> Expert:
        """Load the package at `path` under `name`; `base` as in `Expert.load`.

        Raises:
            LoadError: the name is in use, or the package cannot be loaded.
        """
        self._check_free(name)
        expert = Expert.load(path, base=base, **self._loading)
        with self._lock:
            if name not in self._experts:
                self._experts[name] = expert
                return expert
        expert.close()
        self._check_free(name)
        raise LoadError(f"expert {name!r} was loaded and unloaded by another thread meanwhile: try again")

    def unload_expert(self, name: str) -> None:
        """Unload an expert; answers that are being generated are finished.

        Raises:
            UnknownExpertError: there is none of that name.
        """
        with self._lock:
            expert = self._get(name)
            del self._experts[name]
        expert.close()

    def list_loaded_experts(self) -> list[ExpertInfo]:
        """What is loaded, in the order of loading."""
        with self._lock:
            experts = list(self._experts.items())
        return [
            ExpertInfo(
                name=name,
                package=expert.manifest.name,
                version=expert.manifest.version,
                base=expert.base.name,
                base_sha256=expert.base.sha256,
                verdict=expert.verdict,
                kind=expert.adapter.kind if expert.adapter else "merged",
                rank=expert.adapter.rank if expert.adapter else 0,
                adapter_bytes=expert.adapter.nbytes if expert.adapter else 0,
            )
            for name, expert in experts
        ]

    def generate(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """Answer `prompt` with the expert `name`; see `Expert.generate`.

        Raises:
            UnknownExpertError: there is none of that name.
        """
        return self._named(name).generate(prompt, **options)

    def generate_stream(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> TextStream:
        """As `generate`, piece by piece; see `Expert.generate_stream`."""
        return self._named(name).generate_stream(prompt, **options)

    def generate_batch(
        self,
        requests: Sequence[tuple[str, str | None]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> list[InferenceResult]:
        """Answer prompts with several experts; those of one base share every step.

        Args:
            requests: (name, prompt) pairs.
            batch_size: most rows in memory for one base; further prompts wait for a free one.
            options: see `Expert.generate_batch`.

        Returns:
            The results, in the order of the requests.

        Raises:
            UnknownExpertError: an expert is not loaded; no prompt is answered then.
        """
        experts = [self._named(name) for name, _ in requests]
        rows = options_of_rows(options, len(requests))
        asked = [
            expert.ask(prompt, own) for expert, (_, prompt), own in zip(experts, requests, rows, strict=True)
        ]
        return answer_all(asked, batch_size)

    async def agenerate(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """See `Expert.agenerate`."""
        return await self._named(name).agenerate(prompt, **options)

    def agenerate_stream(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """See `Expert.agenerate_stream`."""
        return self._named(name).agenerate_stream(prompt, **options)

    def close(self) -> None:
        """Unload every expert."""
        with self._lock:
            experts = list(self._experts.values())
            self._experts.clear()
        for expert in experts:
            expert.close()

    def __enter__(self) -> ExpertManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _named(self, name: str) -> Expert:
        with self._lock:
            return self._get(name)

    def _get(self, name: str) -> Expert:
        try:
            return self._experts[name]
        except KeyError:
            loaded = ", ".join(map(repr, self._experts)) or "none"
            raise UnknownExpertError(f"no expert is loaded as {name!r}; loaded are: {loaded}") from None

    def _check_free(self, name: str) -> None:
        with self._lock:
            if name in self._experts:
                raise LoadError(
                    f"an expert is loaded as {name!r} already: unload it first, or choose another name"
                )
