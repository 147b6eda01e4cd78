"""What a manager tells of a request: events, and a span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hivellm_ort.decoding.serving import serving
from hivellm_ort.manager.slots import Lease
from hivellm_ort.observability import (
    Events,
    FirstToken,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    Swapped,
    start_request,
)
from hivellm_ort.requests import Asked

__all__ = ["Watch"]


class Watch:
    """Follows one request from its submission to its end, and then lets its expert be evicted again.

    Args:
        events: who is told.
        asked: the request, not submitted yet.
        expert: the name it was asked under.
        sampling: how its tokens are chosen, for the span.
        stream: whether the answer is given piece by piece.
        lease: of its expert.
        running: where it is until it ends.
    """

    def __init__(
        self,
        events: Events,
        asked: Asked,
        *,
        expert: str,
        sampling: Mapping[str, Any],
        stream: bool,
        lease: Lease,
        running: set[Watch],
    ):
        self._events = events
        self._transcript = asked.transcript
        self._cancelled = asked.cancelled
        self._expert, self._base = expert, lease.slot.base
        self._lease, self._running = lease, running
        self._started = False
        self._span = start_request(expert, sampling, stream=stream)
        asked.transcript.observer = self
        running.add(self)
        try:
            with serving():  # the lease is out: `close` would wait for it
                events.emit(RequestQueued(expert=expert, base=self._base))
        except BaseException:
            running.discard(self)
            raise

    def cancel(self) -> None:
        """End the request."""
        self._cancelled.set()

    def started(self) -> None:
        """Its turn has come."""
        self._started = True
        queued = self._transcript.timings().queue
        self._events.emit(RequestStarted(expert=self._expert, base=self._base, queued_seconds=queued))

    def first_token(self) -> None:
        """Its first token is there."""
        timings = self._transcript.timings()
        self._events.emit(
            FirstToken(expert=self._expert, base=self._base, seconds=timings.queue + timings.prefill)
        )
        if timings.swap:
            self._events.emit(Swapped(expert=self._expert, base=self._base, seconds=timings.swap))
        self._span.first_token()

    def ended(self) -> None:
        """It has ended."""
        try:
            self._tell_end()
        finally:
            self._running.discard(self)
            self._lease.release()

    def _tell_end(self) -> None:
        error, timings = self._transcript.error, self._transcript.timings()
        if error is not None:
            finished = RequestFinished(
                expert=self._expert,
                base=self._base,
                error=type(error).__name__,
                started=self._started,
                queued_seconds=timings.queue,
                prefill_seconds=timings.prefill,
                decode_seconds=timings.decode,
            )
            self._span.end(error)
        else:
            result = self._transcript.result()
            finished = RequestFinished.from_result(
                result,
                expert=self._expert,
                base=self._base,
                queued_seconds=timings.queue,
                started=self._started,
            )
            self._span.end(result)
        self._events.emit(finished)
