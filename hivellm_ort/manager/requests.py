"""Makes the generations of a manager. Each reports its events and keeps its expert in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from hivellm_ort.errors import LoadError, OptionTypeError, UnknownExpertError
from hivellm_ort.expert import Expert
from hivellm_ort.manager.entry import Lease
from hivellm_ort.manager.registry import ExpertRegistry
from hivellm_ort.manager.reporting import RequestReporter
from hivellm_ort.observability import Events
from hivellm_ort.options import GenerateOptions, ScoreOptions, check_options
from hivellm_ort.serving.builder import RequestBuilder
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.scheduler import Scheduler

__all__ = ["BASE", "ManagedRequests", "Prepared", "check_name"]

BASE = "base"
"""The name of the base model itself, without any expert."""

Prepared = tuple[Scheduler, Generation]
"""The scheduler that will run a generation, and the generation, not submitted yet."""


class ManagedRequests:
    """Makes the generations of a manager. Thread-safe.

    Args:
        registry: The experts.
        events: Receives the events of requests.

    Attributes:
        running: All generations that have not ended.
    """

    def __init__(self, registry: ExpertRegistry, events: Events):
        self._registry = registry
        self._events = events
        self.running: set[Generation] = set()

    def generation(
        self, name: str, prompt: str | None, options: GenerateOptions, *, stream: bool = False
    ) -> Prepared:
        """Make a generation that answers a prompt.

        Args:
            name: The expert, or `BASE`.
            prompt: As for `Expert.generate`.
            options: As for `Expert.generate`.
            stream: Whether the answer is returned piece by piece.

        Raises:
            UnknownExpertError: No expert has this name.
            ExpertError: As for `Expert.generate`.
        """
        check_options(options)
        return self._prepared(name, options, lambda builder: builder.build(prompt, options), stream=stream)

    def score(self, name: str, prompt: str | None, answers: Sequence[str], options: ScoreOptions) -> Prepared:
        """Make a generation that scores given answers; see `generation` and `Expert.score`."""
        check_options(options, ScoreOptions)
        return self._prepared(name, options, lambda builder: builder.build_score(prompt, answers, options))

    def lease(self, name: str, *, hits: int = 1) -> Lease:
        """Lease the expert `name`. For `BASE`, lease any expert on the base that all experts share.

        Raises:
            OptionTypeError: The name is not a text.
            UnknownExpertError: No expert has this name.
            LoadError: The expert was evicted and cannot be loaded again, or the experts have several bases.
        """
        check_name(name)
        return self._lease_any() if name == BASE else self._registry.lease(name, hits=hits)

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[Expert]:
        """Keep an expert in memory while the block runs, without counting a request. Raises as `lease`."""
        self._registry.home.require()
        lease = self.lease(name, hits=0)
        try:
            yield lease.expert
        finally:
            lease.release()

    def builder(self, name: str, expert: Expert) -> RequestBuilder:
        """Return the builder of the leased expert `name`; for `BASE` that of its base."""
        return RequestBuilder.for_base(expert.shared_base) if name == BASE else expert.builder

    def cancel_all(self) -> None:
        """Cancel every generation that has not ended."""
        for generation in list(self.running):
            generation.cancel()

    def _lease_any(self) -> Lease:
        """Lease any expert, for requests to the base that all experts share."""
        while True:
            entries = [entry for entry in self._registry.entries() if entry.digest]
            bases = {entry.base_sha256: entry.base for entry in entries}
            if len(bases) > 1:
                names = ", ".join(map(repr, bases.values()))
                raise LoadError(
                    f"the experts have several bases ({names}), so 'base' could be any of them: name an expert"
                )
            if not entries:
                raise UnknownExpertError(
                    "no expert is loaded that has a base model of its own (a merged expert has none): load one first"
                )
            loaded = next((entry for entry in entries if entry.expert is not None), entries[0])
            with contextlib.suppress(UnknownExpertError):  # unloaded meanwhile
                return self._registry.lease(loaded.name, hits=0)

    def _prepared(
        self,
        name: str,
        options: GenerateOptions | ScoreOptions,
        build: Callable[[RequestBuilder], Generation],
        *,
        stream: bool = False,
    ) -> Prepared:
        self._registry.home.require()
        lease = self.lease(name)
        try:
            generation = build(self.builder(name, lease.expert))
            RequestReporter(
                self._events,
                generation,
                expert=name,
                options=options,
                stream=stream,
                lease=lease,
                running=self.running,
            )
        except BaseException:
            lease.release()
            raise
        if self._registry.closed:
            generation.cancel()
        return lease.expert.shared_base.scheduler, generation


def check_name(name: object) -> None:
    """Check that the name of an expert is a text. Raises OptionTypeError."""
    if not isinstance(name, str):
        raise OptionTypeError(f"the name of the expert is {type(name).__name__}: pass a text (str)")
