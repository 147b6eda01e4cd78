"""Reports a request of a manager as events and as a span."""

from __future__ import annotations

from hivellm_ort.manager.entry import Lease
from hivellm_ort.observability import (
    Events,
    FirstToken,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    Swapped,
    start_request,
)
from hivellm_ort.options import GenerateOptions, ScoreOptions
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.threads import serving

__all__ = ["RequestReporter"]


class RequestReporter:
    """Subscribes to one generation and reports it from the queue to its end. Then it releases the expert's lease.

    Args:
        events: Receives the events.
        generation: The generation, not submitted yet.
        expert: The name of the expert in the request.
        options: The options of the request, for the span.
        stream: Whether the answer is returned piece by piece.
        lease: The lease of the expert.
        running: Contains the generation until it ends.
    """

    def __init__(
        self,
        events: Events,
        generation: Generation,
        *,
        expert: str,
        options: GenerateOptions | ScoreOptions,
        stream: bool,
        lease: Lease,
        running: set[Generation],
    ):
        self._events = events
        self._expert, self._base = expert, lease.entry.base
        self._lease, self._running = lease, running
        self._started = False
        sampling = {**generation.request.options, "stop": options.get("stop")}
        self._span = start_request(expert, sampling, stream=stream)
        generation.subscribe(self)
        running.add(generation)
        try:
            with serving():  # a listener must not call `close`, which would wait for this lease
                events.emit(RequestQueued(expert=expert, base=self._base))
        except BaseException:
            running.discard(generation)
            raise

    def started(self, generation: Generation) -> None:
        """Report the event; see `Subscriber`."""
        self._started = True
        queued = generation.timings().queue
        self._events.emit(RequestStarted(expert=self._expert, base=self._base, queued_seconds=queued))

    def first_token(self, generation: Generation) -> None:
        """Report the event; see `Subscriber`."""
        timings = generation.timings()
        self._events.emit(
            FirstToken(expert=self._expert, base=self._base, seconds=timings.queue + timings.prefill)
        )
        if timings.swap:
            self._events.emit(Swapped(expert=self._expert, base=self._base, seconds=timings.swap))
        self._span.first_token()

    def ended(self, generation: Generation) -> None:
        """Report the event; see `Subscriber`."""
        try:
            self._report_end(generation)
        finally:
            self._running.discard(generation)
            self._lease.release()

    def _report_end(self, generation: Generation) -> None:
        timings = generation.timings()
        if generation.error is not None:
            finished = RequestFinished(
                expert=self._expert,
                base=self._base,
                error=type(generation.error).__name__,
                started=self._started,
                queued_seconds=timings.queue,
                prefill_seconds=timings.prefill,
                decode_seconds=timings.decode,
            )
            self._span.end(generation.error)
        else:
            result = generation.result()
            finished = RequestFinished.from_result(
                result,
                expert=self._expert,
                base=self._base,
                queued_seconds=timings.queue,
                started=self._started,
            )
            self._span.end(result)
        self._events.emit(finished)
