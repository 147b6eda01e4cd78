"""Many experts by name, on shared bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack

from hivellm_ort.errors import LoadError, OptionError, OptionTypeError
from hivellm_ort.expert import Expert
from hivellm_ort.loading.opening import open_with_progress, read_manifest
from hivellm_ort.loading.options import LoadOptions, LoadSettings, checked_path
from hivellm_ort.manager.chooser import ExpertChooser
from hivellm_ort.manager.constraints import check_constraints, check_replacement, in_load_order, needed_by
from hivellm_ort.manager.entry import ExpertEntry
from hivellm_ort.manager.info import ExpertInfo
from hivellm_ort.manager.registry import ExpertRegistry
from hivellm_ort.manager.requests import BASE, ManagedRequests, Prepared, check_name
from hivellm_ort.observability import Events, Metrics
from hivellm_ort.options import GenerateOptions, ScoreOptions, check_prompt, check_requests, options_of_rows
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.paths import StrPath
from hivellm_ort.result import InferenceResult, ScoreResult
from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE, run_all
from hivellm_ort.serving.stream import AsyncTextStream, TextStream
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hivellm_ort.routing import Route, Scorer, Tags

__all__ = ["ExpertManager"]


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
        options: for every expert, see `LoadOptions`; `load_expert` may give another `base`.

    Attributes:
        BASE: the name of the base model itself, without any expert.
        events: tells listeners what happens (see `hivellm_ort.observability`).
        metrics: counters and histograms of it.

    Raises:
        OptionTypeError (TypeError), OptionError (ValueError), ProviderError: an option is wrong.
    """

    BASE: Final = BASE

    def __init__(
        self,
        *,
        max_loaded_experts: int | None = None,
        memory_budget: int | None = None,
        scorer: Scorer | None = None,
        **options: Unpack[LoadOptions],
    ):
        self._options = options
        self._settings = LoadSettings.of(options)
        self.metrics = Metrics()
        self.events = Events(self.metrics)
        self._registry = ExpertRegistry(max_loaded_experts, memory_budget, self.events)
        self._chooser = ExpertChooser(self._registry, scorer)
        self._requests = ManagedRequests(self._registry, self.events)

    def load_expert(
        self, name: str, path: StrPath, *, base: StrPath | None = None, replace: bool = False
    ) -> ExpertInfo:
        """Load the package at `path` under `name`.

        Args:
            name: the name to ask it by.
            path: the package, or a folder as PEFT saves it.
            base: as in `LoadOptions`; that of the manager by default.
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
        entries: list[ExpertEntry] = []
        try:
            # What is there already when one fails is in the list.
            entries.extend(self._load(name, packages[name], base, replace=False) for name in names)
        except BaseException:
            for entry in reversed(entries):
                self._registry.discard(entry)
            raise
        return [entry.info() for entry in entries]

    def unload_expert(self, name: str) -> None:
        """Unload an expert; its answers that are being generated are finished.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: another loaded expert requires it.
        """

        def check(entry: ExpertEntry, others: list[ExpertManifest]) -> None:
            needing = needed_by(entry.manifest, others)
            if needing:
                raise LoadError(f"{name!r} is required by {', '.join(map(repr, needing))}: unload that first")

        self._experts.remove(name, check)

    def list_loaded_experts(self) -> list[ExpertInfo]:
        """Every expert, in memory or evicted, in the order of loading."""
        return self._experts.infos()

    def tokenizer(self, name: str) -> TextTokenizer:
        """The tokenizer of an expert's base, or of `BASE`; it stays valid when the expert is unloaded.

        See `Expert.tokenizer`.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        self._registry.home.require()
        lease = self._requests.lease(name, hits=0)
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
        lease = self._requests.lease(name, hits=0)
        try:
            return self._requests.builder(name, lease.expert).prompt_ids(prompt, options)
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
        self._experts.pin(name)

    def unpin(self, name: str) -> None:
        """Take back a `pin`.

        Raises:
            UnknownExpertError: there is none of that name.
            ValueError: it is not pinned.
        """
        self._experts.unpin(name)

    def stats(self) -> dict[str, Any]:
        """What is in memory, in bytes, and what goes on, as JSON types.

        `bytes` is `adapter_bytes` and, of every base, `bytes`, `key_value_bytes` and `prefix_bytes`. Adapters of
        experts that were unloaded or replaced count until their last answer has ended.
        """
        return self._experts.stats()

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
        return BASE if name is None else name

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
        return run_all([self._requests.generation(name, prompt, options)], 1)[0]

    def generate_stream(
        self,
        name: str,
        prompt: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """As `generate`, piece by piece; see `Expert.generate_stream`."""
        scheduler, generation = self._requests.generation(name, prompt, options, stream=True)
        scheduler.submit(generation)
        return TextStream(generation)

    def score(
        self, name: str, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """How likely each of a few given answers is to the expert `name`, or to `BASE`; see `Expert.score`.

        Raises:
            UnknownExpertError: there is no expert of that name.
        """
        scheduler, generation = self._requests.score(name, prompt, answers, options)
        run_all([(scheduler, generation)], 1)
        return generation.score_result(answers)

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
        prepared: list[Prepared] = []
        try:
            for (name, prompt), own in zip(requests, rows, strict=True):
                prepared.append(self._requests.generation(name, prompt, own))
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
        self._requests.cancel_all()
        self._registry.close()

    def __enter__(self) -> ExpertManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _experts(self) -> ExpertRegistry:
        """The registry. Raises `InferenceError` in a process that was forked from the manager's."""
        self._registry.home.require()
        return self._registry

    def _load(self, name: str, path: StrPath, base: StrPath | None, *, replace: bool) -> ExpertEntry:
        check_name(name)
        if name == BASE:
            raise OptionError(f"{BASE!r} is the name of the base model: load the expert under another one")
        self._registry.home.require()
        options: LoadOptions = self._options if base is None else {**self._options, "base": base}
        entry = ExpertEntry.loaded(name, partial(Expert.load, path, **options))

        def check(old: ExpertEntry | None, others: list[ExpertManifest]) -> None:
            check_constraints(entry.manifest, others)
            if old is not None:
                check_replacement(old.manifest, entry.manifest, others)

        self._registry.add(entry, replace=replace, check=check)
        return entry

    def _manifest(self, path: StrPath) -> ExpertManifest:
        with self._settings.store() as store:
            files = open_with_progress(checked_path(path, "path"), store, limits=self._settings.limits)
            return read_manifest(files)
