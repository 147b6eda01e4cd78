"""Many experts by name, on shared bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from hivellm_ort.decoding.serving import refuse_to_wait
from hivellm_ort.decoding.stream import AsyncTextStream, TextStream
from hivellm_ort.errors import LoadError, OptionError, OptionTypeError, UnknownExpertError
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Policy, Trust
from hivellm_ort.loading.opening import open_with_progress, read_manifest
from hivellm_ort.manager.constraints import check_constraints, check_replacement, in_load_order, needed_by
from hivellm_ort.manager.info import ExpertInfo
from hivellm_ort.manager.residents import Residents
from hivellm_ort.manager.slots import Slot
from hivellm_ort.manager.watch import Watch
from hivellm_ort.observability import Events, Metrics
from hivellm_ort.options import (
    GenerateOptions,
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
from hivellm_ort.requests import DEFAULT_BATCH_SIZE, Asked, answer_all, base_voice
from hivellm_ort.result import InferenceResult
from hivellm_ort.text.messages import question_of
from hivellm_ort.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hivellm_ort.routing import Route, Router, Scorer, Tags

__all__ = ["ExpertManager"]

_ROUTED_CHARACTERS = 4000  # of a system message and a schema each: beyond that they tell nothing new


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
        events: tells listeners what happens (see `hivellm_ort.observability`).
        metrics: counters and histograms of it.
    """

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
        self._scorer = scorer
        self._residents = Residents(max_loaded_experts, memory_budget, self.events)
        self._routed: tuple[list[Slot], Router] | None = None
        self._running: set[Watch] = set()

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
        self._residents.home.require()
        names = in_load_order({name: self._manifest(path) for name, path in packages.items()})
        slots: list[Slot] = []
        try:
            # What is there already when one fails is in the list.
            slots.extend(self._load(name, packages[name], base, replace=False) for name in names)
        except BaseException:
            for slot in reversed(slots):
                self._residents.discard(slot)
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

        self._residents.home.require()
        self._residents.remove(name, check)

    def list_loaded_experts(self) -> list[ExpertInfo]:
        """Every expert, in memory or evicted, in the order of loading."""
        self._residents.home.require()
        return self._residents.infos()

    def tokenizer(self, name: str) -> TextTokenizer:
        """The tokenizer of an expert's base, which stays valid when the expert is unloaded; see `Expert.tokenizer`.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        self._residents.home.require()
        lease = self._residents.lease(name, hits=0)
        try:
            return lease.expert.tokenizer
        finally:
            lease.release()

    def pin(self, name: str) -> None:
        """Keep an expert in memory until `unpin` was called as often, whatever package the name is given meanwhile.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        self._residents.home.require()
        self._residents.pin(name)

    def unpin(self, name: str) -> None:
        """Take back a `pin`.

        Raises:
            UnknownExpertError: there is none of that name.
            ValueError: it is not pinned.
        """
        self._residents.home.require()
        self._residents.unpin(name)

    def stats(self) -> dict[str, Any]:
        """What is in memory, in bytes, and what goes on, as JSON types.

        `bytes` is `adapter_bytes` and, of every base, `bytes`, `key_value_bytes` and `prefix_bytes`. Adapters of
        experts that were unloaded or replaced count until their last answer has ended.
        """
        self._residents.home.require()
        return self._residents.stats()

    def route(self, prompt: str, *, tags: Tags | None = None) -> list[Route]:
        """The experts that fit a prompt, best first, with the reasons; see `hivellm_ort.routing`.

        Args:
            prompt: what is asked; a system message before it tells more.
            tags: what is known of the request, such as `{"database": "sql"}`.
        """
        from hivellm_ort.routing import Candidate, Router  # slow to import

        self._residents.home.require()
        slots = self._residents.slots()
        routed = self._routed
        if routed is None or routed[0] != slots:
            candidates = [
                Candidate(slot.name, slot.manifest.routing, slot.manifest.capabilities) for slot in slots
            ]
            self._routed = routed = (slots, Router(candidates, scorer=self._scorer))
        return routed[1].rank(prompt, tags=tags)

    def generate(
        self,
        name: str | None = None,
        prompt: str | None = None,
        *,
        or_base: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> InferenceResult:
        """Answer `prompt` with the expert `name`; see `Expert.generate`.

        `generate(prompt)`, without a name, asks the expert that `route` ranks first; so does `generate(messages=…)`.

        Args:
            name: the expert; with neither a prompt nor messages this is the prompt.
            prompt: the question; None where `messages` ends with it.
            or_base: ask the base model where no expert fits a prompt without a name.
            options: see `GenerateOptions`.

        Raises:
            UnknownExpertError: there is no expert of that name, or none fits.
        """
        return answer_all([self._ask(name, prompt, options, or_base=or_base)], 1)[0]

    def generate_stream(
        self,
        name: str | None = None,
        prompt: str | None = None,
        *,
        or_base: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """As `generate`, piece by piece; see `Expert.generate_stream`."""
        return self._ask(name, prompt, options, or_base=or_base, stream=True).begin()

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
        asked: list[Asked] = []
        try:
            for (name, prompt), own in zip(requests, rows, strict=True):
                self._residents.get(name)  # a list says whom it asks
                asked.append(self._ask(name, prompt, own))
        except BaseException:
            for one in asked:
                one.abandon()
            raise
        return answer_all(asked, batch_size)

    async def agenerate(
        self,
        name: str | None = None,
        prompt: str | None = None,
        *,
        or_base: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> InferenceResult:
        """As `generate`, without blocking the event loop; cancelling the task ends the generation."""
        stream = self.agenerate_stream(name, prompt, or_base=or_base, **options)
        async for _ in stream:
            pass
        return stream.result

    def agenerate_stream(
        self,
        name: str | None = None,
        prompt: str | None = None,
        *,
        or_base: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """As `generate_stream`, for `async for`; what that raises comes with the first piece."""
        return AsyncTextStream(lambda: self.generate_stream(name, prompt, or_base=or_base, **options))

    def close(self) -> None:
        """Cancel what runs, and free all memory; returns when that is done.

        Raises:
            InferenceError: an event hook calls it, in the thread that answers requests.
        """
        refuse_to_wait()
        if not self._residents.home.here:
            return
        self._residents.closed = True  # from now on nothing begins, or it cancels itself
        for watch in list(self._running):
            watch.cancel()
        self._residents.close()

    def __enter__(self) -> ExpertManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        name: str | None,
        prompt: str | None,
        options: GenerateOptions,
        *,
        or_base: bool = False,
        stream: bool = False,
    ) -> Asked:
        """A request that keeps its expert in memory until it ends."""
        self._residents.home.require()
        check_prompt(name, "the name of the expert")
        check_options(options)
        if prompt is None and not options.get("messages"):
            name, prompt = self._routed_name(name, options, or_base=or_base), name
        elif name is None:
            name = self._routed_name(prompt, options, or_base=or_base)
        lease = self._residents.lease(name) if name is not None else self._residents.lease_any()
        try:
            expert = lease.expert
            asked = (
                expert.ask(prompt, options)
                if name is not None
                else base_voice(expert.shared_base).ask(prompt, options)
            )
            watch = Watch(
                self.events,
                asked,
                expert=name or "base",
                sampling={**asked.transcript.sampling, "stop": options.get("stop")},
                stream=stream,
                lease=lease,
                running=self._running,
            )
        except BaseException:
            lease.release()
            raise
        if self._residents.closed:
            watch.cancel()
        return asked

    def _load(self, name: str, path: StrPath, base: StrPath | None, *, replace: bool) -> Slot:
        if not isinstance(name, str):
            raise OptionTypeError(f"the name of the expert is {type(name).__name__}: pass a text (str)")
        self._residents.home.require()
        slot = Slot.loaded(name, partial(Expert.load, path, base=base, **self._loading))

        def check(old: Slot | None, others: list[ExpertManifest]) -> None:
            check_constraints(slot.manifest, others)
            if old is not None:
                check_replacement(old.manifest, slot.manifest, others)

        self._residents.add(slot, replace=replace, check=check)
        return slot

    def _routed_name(self, prompt: str | None, options: GenerateOptions, *, or_base: bool) -> str | None:
        """The expert that fits best; None for the base where none does."""
        if prompt is None:
            prompt = question_of(options.get("messages"))
        if prompt is None:
            raise OptionError("nothing to answer: give a prompt, or messages with a turn of the user")
        if any(slot.name == prompt for slot in self._residents.slots()):
            raise OptionError(f"{prompt!r} is the name of an expert: give a prompt after it")
        told = [options.get("system") or "", options.get("schema") or ""]
        routes = self.route("\n".join([*(text[:_ROUTED_CHARACTERS] for text in told), prompt]))
        if routes:
            return routes[0].name
        if or_base:
            return None
        known = ", ".join(repr(slot.name) for slot in self._residents.slots()) or "none"
        raise UnknownExpertError(
            f"no expert fits the prompt; loaded are: {known}. Name one, or ask the base model with or_base=True"
        )

    def _manifest(self, path: StrPath) -> ExpertManifest:
        cache = self._loading["cache_dir"]
        with Store(Path(cache) if cache is not None else None) as store:
            package = open_with_progress(Path(path), store, limits=self._loading["limits"])
            return read_manifest(package)
