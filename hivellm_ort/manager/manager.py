"""Many experts by name, on shared bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from hivellm_ort.errors import LoadError, OptionError, OptionTypeError
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Policy, Trust
from hivellm_ort.loading.opening import open_with_progress, read_manifest
from hivellm_ort.manager.chooser import ExpertChooser
from hivellm_ort.manager.constraints import check_constraints, check_replacement, in_load_order, needed_by
from hivellm_ort.manager.info import ExpertInfo
from hivellm_ort.manager.registry import ExpertRegistry
from hivellm_ort.manager.reporting import RequestReporter
from hivellm_ort.manager.slots import Lease, Slot
from hivellm_ort.observability import Events, Metrics
from hivellm_ort.options import (
    GenerateOptions,
    ScoreOptions,
    check_loading,
    check_options,
    check_prompt,
    check_requests,
    options_of_rows,
)
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.store import Store
from hivellm_ort.paths import StrPath
from hivellm_ort.result import InferenceResult, ScoreResult
from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE, run_all
from hivellm_ort.serving.builder import RequestBuilder
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.scheduler import Scheduler
from hivellm_ort.serving.stream import AsyncTextStream, TextStream
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hivellm_ort.routing import Route, Scorer, Tags

__all__ = ["ExpertManager"]


class _Loading(TypedDict):
    device: str | None
    provider_options: Mapping[str, str | int | float | bool] | None
    fallback: bool
    cache_dir: StrPath | None
    threads: int | None
    trust: Trust | Policy
    limits: Limits
    prefix_cache_bytes: int | None


class ExpertManager:
    """Experts by name, one session per base. Every method may be called from any thread.

    Requests to experts of one base share its forward passes, first come, first served; different bases run side by
    side. Changing between experts of one base binds the other adapter's weights and nothing else. A request keeps the
    adapter it began with, whatever is loaded or unloaded meanwhile.

    Listeners of `events` are called by the threads that answer and load. They may call everything that does not wait
    for an answer: unload, pin, list, begin a stream. What waits for one raises `InferenceError` there, and what loads
    holds up the answers of a base.

    Args:
        max_loaded_experts: most adapters in memory; the least recently used is evicted for another, and loaded again
            with its next request. None for any number.
        memory_budget: most bytes of bases, adapters and caches; over it go kept prefixes, then adapters, then bases
            without adapters, the least recently used first. None for any number. Weights count as they are on disk.
        scorer: ranks experts for prompts without a name; by keywords, capabilities and hints by default.
        device: for every expert, see `Expert.load`.
        provider_options: see `Expert.load`.
        fallback: see `Expert.load`.
        cache_dir: see `Expert.load`.
        threads: see `Expert.load`.
        trust: see `Expert.load`.
        limits: see `Expert.load`.
        prefix_cache_bytes: see `Expert.load`.

    Attributes:
        BASE: the name of the base model itself, without any expert.
        events: tells listeners what happens (see `hivellm_ort.observability`).
        metrics: counters and histograms of it.
    """

    BASE: Final = "base"

    def __init__(
        self,
        *,
        max_loaded_experts: int | None = None,
        memory_budget: int | None = None,
        scorer: Scorer | None = None,
        device: str | None = None,
        provider_options: Mapping[str, str | int | float | bool] | None = None,
        fallback: bool = False,
        cache_dir: StrPath | None = None,
        threads: int | None = None,
        trust: Trust | Policy = "warn",
        limits: Limits = DEFAULT_LIMITS,
        prefix_cache_bytes: int | None = None,
    ):
        check_loading(fallback=fallback, threads=threads, prefix_cache_bytes=prefix_cache_bytes)
        self._loading = _Loading(
            device=device,
            provider_options=provider_options,
            fallback=fallback,
            cache_dir=cache_dir,
            threads=threads,
            trust=trust,
            limits=limits,
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self.metrics = Metrics()
        self.events = Events(self.metrics)
        self._registry = ExpertRegistry(max_loaded_experts, memory_budget, self.events)
        self._chooser = ExpertChooser(self._registry, scorer)
        self._running: set[Generation] = set()

    def load_expert(
        self, name: str, path: StrPath, *, base: StrPath | None = None, replace: bool = False
    ) -> ExpertInfo:
        """Load the package at `path` under `name`.

        Args:
            name: the name to ask it by.
            path: the package, or a folder as PEFT saves it.
            base: as in `Expert.load`.
            replace: whether it may take the place of another; requests that run keep the one they began with, and
                pins hold for the new one.

        Raises:
            LoadError: the name is in use, the package cannot be loaded, or `constraints` of its manifest or of a
                loaded one forbid it. Nothing has changed then.
        """
        return self._load(name, path, base, replace=replace).info()

    def load_experts(
        self, packages: Mapping[str, StrPath], *, base: StrPath | None = None
    ) -> list[ExpertInfo]:
        """Load several packages in the order that their `constraints` ask for (`load_order`, `requires`).

        Raises:
            LoadError: as `load_expert`; none of them stays loaded.
        """
        if not isinstance(packages, Mapping):
            raise OptionTypeError(
                f"packages is {type(packages).__name__}: pass a dict of names and paths, such as "
                "{'sql': 'expert-sql.expert'}"
            )
        self._registry.home.require()
        names = in_load_order({name: self._manifest(path) for name, path in packages.items()})
        slots: list[Slot] = []
        try:
            # What is there already when one fails is in the list.
            slots.extend(self._load(name, packages[name], base, replace=False) for name in names)
        except BaseException:
            for slot in reversed(slots):
                self._registry.discard(slot)
            raise
        return [slot.info() for slot in slots]

    def unload_expert(self, name: str) -> None:
        """Unload an expert; its answers that are being generated are finished.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: another loaded expert requires it.
        """

        def check(slot: Slot, others: list[ExpertManifest]) -> None:
            needing = needed_by(slot.manifest, others)
            if needing:
                raise LoadError(f"{name!r} is required by {', '.join(map(repr, needing))}: unload that first")

        self._registry.home.require()
        self._registry.remove(name, check)

    def list_loaded_experts(self) -> list[ExpertInfo]:
        """Every expert, in memory or evicted, in the order of loading."""
        self._registry.home.require()
        return self._registry.infos()

    def tokenizer(self, name: str) -> TextTokenizer:
        """The tokenizer of an expert's base, or of `BASE`; it stays valid when the expert is unloaded.

        See `Expert.tokenizer`.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        self._registry.home.require()
        _check_name(name)
        lease = self._lease(name, hits=0)
        try:
            return lease.expert.tokenizer
        finally:
            lease.release()

    def prompt_ids(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> list[int]:
        """The tokens that the model reads for `generate` with these arguments; nothing is generated.

        Raises:
            UnknownExpertError: there is no expert of that name.
            ExpertError: as `generate`.
        """
        self._registry.home.require()
        _check_name(name)
        lease = self._lease(name, hits=0)
        try:
            return self._builder(name, lease.expert).prompt_ids(prompt, options)
        finally:
            lease.release()

    def package_name(self, path: StrPath) -> str:
        """The name in the manifest of a package, which is not loaded.

        Args:
            path: as for `load_expert`.

        Raises:
            LoadError: the package cannot be read.
        """
        return self._manifest(path).name

    def pin(self, name: str) -> None:
        """Keep an expert in memory until `unpin` was called as often, whatever package the name is given meanwhile.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        self._registry.home.require()
        self._registry.pin(name)

    def unpin(self, name: str) -> None:
        """Take back a `pin`.

        Raises:
            UnknownExpertError: there is none of that name.
            ValueError: it is not pinned.
        """
        self._registry.home.require()
        self._registry.unpin(name)

    def stats(self) -> dict[str, Any]:
        """What is in memory, in bytes, and what goes on, as JSON types.

        `bytes` is `adapter_bytes` and, of every base, `bytes`, `key_value_bytes` and `prefix_bytes`. Adapters of
        experts that were unloaded or replaced count until their last answer has ended.
        """
        self._registry.home.require()
        return self._registry.stats()

    def route(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        schema: str | None = None,
        tags: Tags | None = None,
    ) -> list[Route]:
        """The experts that fit a question, best first, with the reasons; see `hivellm_ort.routing`.

        Args:
            prompt: the question; None where `messages` ends with it.
            messages: as in `GenerateOptions`; the last turn of the user counts.
            system: a system message tells more.
            schema: so does a schema.
            tags: what is known of the request, such as `{"database": "sql"}`.

        Raises:
            OptionError: there is neither a prompt nor a turn of the user.
        """
        self._registry.home.require()
        check_prompt(prompt)
        return self._chooser.rank(prompt, messages, [system, schema], tags)

    def choose(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        schema: str | None = None,
        tags: Tags | None = None,
        or_base: bool = False,
    ) -> str:
        """The name of the expert that fits a question best, for `generate`: the one that `route` ranks first.

        Args:
            prompt: as for `route`.
            messages: as for `route`.
            system: as for `route`.
            schema: as for `route`.
            tags: as for `route`.
            or_base: give `BASE` where no expert fits.

        Raises:
            UnknownExpertError: no expert fits.
            OptionError: there is neither a prompt nor a turn of the user.
        """
        self._registry.home.require()
        check_prompt(prompt)
        name = self._chooser.best(prompt, messages, [system, schema], tags, required=not or_base)
        return self.BASE if name is None else name

    def generate(
        self,
        name: str,
        prompt: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> InferenceResult:
        """Answer `prompt` with the expert `name`; see `Expert.generate`.

        >>> manager.generate(manager.choose(prompt), prompt)  # doctest: +SKIP

        Args:
            name: the expert; `BASE` for the base model that all experts share. `choose` finds the one that fits.
            prompt: the question; None where `messages` ends with it.
            options: see `GenerateOptions`.

        Raises:
            UnknownExpertError: there is no expert of that name.
        """
        return run_all([self._prepare(name, partial(_build, prompt, options), options)], 1)[0]

    def generate_stream(
        self,
        name: str,
        prompt: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """As `generate`, piece by piece; see `Expert.generate_stream`."""
        scheduler, generation = self._prepare(name, partial(_build, prompt, options), options, stream=True)
        scheduler.submit(generation)
        return TextStream(generation)

    def score(
        self, name: str, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """How likely each of a few given answers is to the expert `name`, or to `BASE`; see `Expert.score`.

        Raises:
            UnknownExpertError: there is no expert of that name.
        """
        asked = self._prepare_score(name, prompt, answers, options)
        run_all([asked], 1)
        return asked[1].score_result(answers)

    async def ascore(
        self, name: str, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """As `score`, without blocking the event loop; cancelling the task ends the request."""
        asked: list[Generation] = []

        def start() -> TextStream:
            scheduler, generation = self._prepare_score(name, prompt, answers, options)
            asked.append(generation)
            scheduler.submit(generation)
            return TextStream(generation)

        async for _ in AsyncTextStream(start):
            pass
        return asked[0].score_result(answers)

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
            batch_size: most of them at a time for one base; further prompts wait.
            options: see `Expert.generate_batch`.

        Returns:
            The results, in the order of the requests.

        Raises:
            OptionTypeError (TypeError): `requests` is no list of pairs.
            UnknownExpertError: an expert is not loaded; no prompt is answered then.
        """
        check_requests(requests)
        rows = options_of_rows(options, len(requests))
        prepared: list[tuple[Scheduler, Generation]] = []
        try:
            for (name, prompt), own in zip(requests, rows, strict=True):
                prepared.append(self._prepare(name, partial(_build, prompt, own), own))
        except BaseException:
            for _, generation in prepared:
                generation.end_before_start()
            raise
        return run_all(prepared, batch_size)

    async def agenerate(
        self,
        name: str,
        prompt: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> InferenceResult:
        """As `generate`, without blocking the event loop; cancelling the task ends the generation."""
        stream = self.agenerate_stream(name, prompt, **options)
        async for _ in stream:
            pass
        return stream.result

    def agenerate_stream(
        self,
        name: str,
        prompt: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """As `generate_stream`, for `async for`; what that raises comes with the first piece."""
        return AsyncTextStream(lambda: self.generate_stream(name, prompt, **options))

    def close(self) -> None:
        """Cancel what runs, and free all memory; returns when that is done. A run that lasts is interrupted.

        Raises:
            InferenceError: an event hook calls it, in the thread that answers requests.
        """
        refuse_to_wait()
        if not self._registry.home.here:
            return
        self._registry.closed = True  # from now on nothing begins, or it cancels itself
        for generation in list(self._running):
            generation.cancel()
        self._registry.close()

    def __enter__(self) -> ExpertManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare_score(
        self, name: str, prompt: str | None, answers: Sequence[str], options: ScoreOptions
    ) -> tuple[Scheduler, Generation]:
        return self._prepare(
            name, lambda builder: builder.build_score(prompt, answers, options), options, of=ScoreOptions
        )

    def _prepare(
        self,
        name: str,
        build: Callable[[RequestBuilder], Generation],
        options: GenerateOptions | ScoreOptions,
        *,
        of: type[Any] = GenerateOptions,
        stream: bool = False,
    ) -> tuple[Scheduler, Generation]:
        """A generation that keeps its expert in memory until it ends, and the scheduler that is to run it."""
        self._registry.home.require()
        _check_name(name)
        check_options(options, of)
        lease = self._lease(name)
        try:
            expert = lease.expert
            generation = build(self._builder(name, expert))
            RequestReporter(
                self.events,
                generation,
                expert=name,
                options=options,
                stream=stream,
                lease=lease,
                running=self._running,
            )
        except BaseException:
            lease.release()
            raise
        if self._registry.closed:
            generation.cancel()
        return expert.shared_base.scheduler, generation

    def _lease(self, name: str, *, hits: int = 1) -> Lease:
        return self._registry.lease_any() if name == self.BASE else self._registry.lease(name, hits=hits)

    def _builder(self, name: str, expert: Expert) -> RequestBuilder:
        return RequestBuilder.for_base(expert.shared_base) if name == self.BASE else expert.builder

    def _load(self, name: str, path: StrPath, base: StrPath | None, *, replace: bool) -> Slot:
        _check_name(name)
        if name == self.BASE:
            raise OptionError(
                f"{self.BASE!r} is the name of the base model: load the expert under another one"
            )
        self._registry.home.require()
        slot = Slot.loaded(name, partial(Expert.load, path, base=base, **self._loading))

        def check(old: Slot | None, others: list[ExpertManifest]) -> None:
            check_constraints(slot.manifest, others)
            if old is not None:
                check_replacement(old.manifest, slot.manifest, others)

        self._registry.add(slot, replace=replace, check=check)
        return slot

    def _manifest(self, path: StrPath) -> ExpertManifest:
        cache = self._loading["cache_dir"]
        with Store(Path(cache) if cache is not None else None) as store:
            package = open_with_progress(Path(path), store, limits=self._loading["limits"])
            return read_manifest(package)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise OptionTypeError(f"the name of the expert is {type(name).__name__}: pass a text (str)")


def _build(prompt: str | None, options: GenerateOptions, builder: RequestBuilder) -> Generation:
    return builder.build(prompt, options)
