"""The manager: many experts by name, on shared bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack

from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.expert import Expert
from hivellm_ort.loading.opening import open_with_progress, read_manifest
from hivellm_ort.loading.options import LoadOptions, LoadSettings, checked_path
from hivellm_ort.manager.chooser import ExpertChooser
from hivellm_ort.manager.constraints import check_constraints, check_removal, check_replacement, sort_experts
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
from hivellm_ort.serving.stream import AsyncTextStream, TextStream, score_result
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hivellm_ort.routing import Route, Scorer, Tags

__all__ = ["ExpertManager"]


class ExpertManager:
    """Loads experts by name and answers requests to them. Every method is thread-safe.

    There is one session per base. Requests to experts of one base share its forward passes, first come, first served.
    Different bases run in parallel. A change between experts of one base only binds the weights of another adapter.
    A request keeps its adapter, even if the expert is unloaded or replaced meanwhile.

    Listeners of `events` run in the threads that answer and load. They may call every method that does not wait for
    an answer, such as `unload_expert`, `pin` and `generate_stream`. A method that waits for an answer raises
    `InferenceError` there. A method that loads delays the answers of a base.

    Args:
        max_loaded_experts: Most adapters in memory; None for no limit. The least recently used one is evicted, and
            loaded again with its next request.
        memory_budget: Most bytes of bases, adapters and caches; None for no limit. Weights count with their size on
            disk. Evicted are first cached prefixes, then adapters, then bases without adapters; of each the least
            recently used first.
        scorer: Ranks the experts for a prompt. Default: by keywords, capabilities and hints.
        options: `LoadOptions` of all experts; `load_expert` may give another `base`.

    Attributes:
        BASE: The name of the base model itself, without any expert.
        events: Passes events to listeners (see `hivellm_ort.observability`).
        metrics: Counters and histograms of the events.

    Raises:
        OptionTypeError (TypeError), OptionError (ValueError), ProviderError: An option is wrong.
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
            name: The name of the expert in requests.
            path: The package, or a folder that PEFT saved.
            base: As in `LoadOptions`. Default: the base of the manager.
            replace: Whether to replace a loaded expert of this name. Running requests keep the old one. Pins are
                kept for the new one.

        Raises:
            LoadError: The name is in use, the package cannot be loaded, or the `constraints` of a manifest forbid it.
                Nothing has changed.
        """
        return self._load(name, path, base, replace=replace).info()

    def load_experts(
        self, packages: Mapping[str, StrPath], *, base: StrPath | None = None
    ) -> list[ExpertInfo]:
        """Load several packages in the order of their `constraints` (`load_order`, `requires`).

        Raises:
            LoadError: As for `load_expert`. None of the packages stays loaded.
        """
        if not isinstance(packages, Mapping):
            raise OptionTypeError(
                f"packages is {type(packages).__name__}: pass a dict of names and paths, such as "
                "{'sql': 'expert-sql.expert'}"
            )
        self._registry.home.require()
        names = sort_experts({name: self._manifest(path) for name, path in packages.items()})
        entries: list[ExpertEntry] = []
        try:
            # If one fails, the list has those that are loaded already.
            entries.extend(self._load(name, packages[name], base, replace=False) for name in names)
        except BaseException:
            for entry in reversed(entries):
                self._registry.discard(entry)
            raise
        return [entry.info() for entry in entries]

    def unload_expert(self, name: str) -> None:
        """Unload an expert. Its running requests are finished.

        Raises:
            UnknownExpertError: No expert has this name.
            LoadError: Another loaded expert requires it.
        """
        self._experts.remove(name, lambda entry, others: check_removal(name, entry.manifest, others))

    def list_loaded_experts(self) -> list[ExpertInfo]:
        """Return all experts, in memory or evicted, in the order of loading."""
        return self._experts.infos()

    def tokenizer(self, name: str) -> TextTokenizer:
        """Return the tokenizer of an expert's base, or of `BASE`; see `Expert.tokenizer`.

        It stays valid after the expert is unloaded.

        Raises:
            UnknownExpertError: No expert has this name.
            LoadError: The expert was evicted, and its package cannot be loaded again.
        """
        with self._requests.borrow(name) as expert:
            return expert.tokenizer

    def prompt_ids(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> list[int]:
        """Return the prompt tokens that `generate` reads for these arguments. Nothing is generated.

        Raises:
            UnknownExpertError: No expert has this name.
            ExpertError: As for `generate`.
        """
        with self._requests.borrow(name) as expert:
            return self._requests.builder(name, expert).prompt_ids(prompt, options)

    def package_name(self, path: StrPath) -> str:
        """Return the name in the manifest of a package. The package is not loaded.

        Args:
            path: As for `load_expert`.

        Raises:
            LoadError: The package cannot be read.
        """
        return self._manifest(path).name

    def pin(self, name: str) -> None:
        """Keep an expert in memory until `unpin` was called as often as `pin`. A replacement keeps the pins.

        Raises:
            UnknownExpertError: No expert has this name.
            LoadError: The expert was evicted, and its package cannot be loaded again.
        """
        self._experts.pin(name)

    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownExpertError: No expert has this name.
            OptionError (ValueError): The expert is not pinned.
        """
        self._experts.unpin(name)

    def stats(self) -> dict[str, Any]:
        """Return memory use in bytes, and numbers of experts, rows and requests, as JSON types.

        `bytes` is the sum of `adapter_bytes` and of `bytes`, `key_value_bytes` and `prefix_bytes` of every base.
        The adapter of an unloaded or replaced expert counts until its last request has ended.
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
        """Return the experts that fit a question, best first, with the reasons; see `hivellm_ort.routing`.

        Args:
            prompt: The question; None if `messages` ends with it.
            messages: As in `GenerateOptions`. The last turn of the user counts.
            system: A system message as further context.
            schema: A schema as further context.
            tags: Known properties of the request, such as `{"database": "sql"}`.

        Raises:
            OptionError: There is neither a prompt nor a turn of the user.
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
        """Return the name of the expert that `route` ranks first.

        Args:
            prompt: As for `route`.
            messages: As for `route`.
            system: As for `route`.
            schema: As for `route`.
            tags: As for `route`.
            or_base: Whether to return `BASE` if no expert fits.

        Raises:
            UnknownExpertError: No expert fits.
            OptionError: There is neither a prompt nor a turn of the user.
        """
        self._registry.home.require()
        check_prompt(prompt)
        name = self._chooser.best(prompt, messages, [system, schema], tags, required=not or_base)
        return BASE if name is None else name

    def generate(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """Answer `prompt` with the expert `name`; see `Expert.generate`.

        >>> manager.generate(manager.choose(prompt), prompt)  # doctest: +SKIP

        Args:
            name: The expert; `BASE` for the base model that all experts share. `choose` finds the best expert.
            prompt: The question; None if `messages` ends with it.
            options: See `GenerateOptions`.

        Raises:
            UnknownExpertError: No expert has this name.
        """
        return run_all([self._requests.generation(name, prompt, options)], 1)[0]

    def generate_stream(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> TextStream:
        """Answer as `generate` does, piece by piece; see `Expert.generate_stream`."""
        return _started(self._requests.generation(name, prompt, options, stream=True))

    def score(
        self, name: str, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """Return how likely given answers are for the expert `name`, or for `BASE`; see `Expert.score`.

        Raises:
            UnknownExpertError: No expert has this name.
        """
        scheduler, generation = self._requests.score(name, prompt, answers, options)
        run_all([(scheduler, generation)], 1)
        return generation.score_result(answers)

    async def ascore(
        self, name: str, prompt: str | None, answers: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> ScoreResult:
        """Score as `score` does, without blocking the event loop. Cancelling the task ends the request."""
        return await score_result(
            lambda: _started(self._requests.score(name, prompt, answers, options)), answers
        )

    def generate_batch(
        self,
        requests: Sequence[tuple[str, str | None]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> list[InferenceResult]:
        """Answer prompts with several experts. Requests to experts of one base share its forward passes.

        Args:
            requests: (name, prompt) pairs.
            batch_size: Most requests that run at once on one base; the others wait.
            options: See `Expert.generate_batch`.

        Returns:
            The results, in the order of the requests.

        Raises:
            OptionTypeError (TypeError): `requests` is not a list of pairs.
            UnknownExpertError: An expert is not loaded. No prompt is answered then.
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
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> InferenceResult:
        """Answer as `generate` does, without blocking the event loop. Cancelling the task ends the generation."""
        stream = self.agenerate_stream(name, prompt, **options)
        async for _ in stream:
            pass
        return stream.result

    def agenerate_stream(
        self, name: str, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """Answer as `generate_stream` does, for `async for`. Its errors are raised with the first piece."""
        return AsyncTextStream(lambda: self.generate_stream(name, prompt, **options))

    def close(self) -> None:
        """Cancel all requests, free all memory, and return when that is done. A long forward pass is interrupted.

        Raises:
            InferenceError: An event listener calls it, in the thread that answers requests.
        """
        refuse_to_wait()
        if not self._registry.home.here:
            return
        self._registry.closed = True  # from now on a new request is refused or cancelled at once
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
        """The registry. Raises `InferenceError` in a forked process."""
        self._registry.home.require()
        return self._registry

    def _load(self, name: str, path: StrPath, base: StrPath | None, *, replace: bool) -> ExpertEntry:
        check_name(name)
        if name == BASE:
            raise OptionError(f"{BASE!r} is the name of the base model: load the expert under another name")
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


def _started(prepared: Prepared) -> TextStream:
    scheduler, generation = prepared
    scheduler.submit(generation)
    return TextStream(generation)
