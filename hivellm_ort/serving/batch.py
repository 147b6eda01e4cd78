"""Runs the generations of a batch."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial

from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.result import InferenceResult
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.scheduler import DEFAULT_ROWS, Scheduler
from hivellm_ort.serving.threads import refuse_to_wait

__all__ = ["DEFAULT_BATCH_SIZE", "run_all"]

DEFAULT_BATCH_SIZE = DEFAULT_ROWS
"""Most generations of a batch that run at the same time."""


def run_all(generations: Sequence[tuple[Scheduler, Generation]], batch_size: int) -> list[InferenceResult]:
    """Run generations and return their results in order. All of them end, also after an error.

    Args:
        generations: Each with the scheduler that runs it.
        batch_size: Most generations at the same time, for each scheduler.

    Raises:
        OptionTypeError: `batch_size` is not an integer.
        OptionError: It is below 1.
        Exception: The error of a generation that failed. The others are cancelled then.
    """
    queues: dict[Scheduler, deque[Generation]] = {}
    for scheduler, generation in generations:
        queues.setdefault(scheduler, deque()).append(generation)
    with contextlib.ExitStack() as reserved:
        try:
            refuse_to_wait()
            if isinstance(batch_size, bool) or not isinstance(batch_size, int):
                raise OptionTypeError(f"batch_size is {type(batch_size).__name__}: pass a whole number (int)")
            if batch_size < 1:
                raise OptionError(f"batch_size is {batch_size!r}: it must be an integer from 1")
            for scheduler, waiting in queues.items():
                rows = min(batch_size, len(waiting))
                reserved.enter_context(scheduler.reserve(rows))
                for _ in range(rows):
                    _submit_next(scheduler, waiting)
            return [_result(generation) for _, generation in generations]
        finally:
            for _, generation in generations:
                generation.cancel()
            for waiting in queues.values():
                while (left := _popped(waiting)) is not None:
                    left.end_before_start()


def _submit_next(scheduler: Scheduler, waiting: deque[Generation]) -> None:
    """Submit the next generation, and after its end the one after it."""
    while (generation := _popped(waiting)) is not None:
        scheduler.submit(generation)
        if not generation.ended:
            generation.listen(partial(_submit_after, scheduler, generation, waiting))
            return


def _submit_after(scheduler: Scheduler, generation: Generation, waiting: deque[Generation]) -> None:
    if generation.ended:
        _submit_next(scheduler, waiting)


def _popped(waiting: deque[Generation]) -> Generation | None:
    try:
        return waiting.popleft()
    except IndexError:  # another thread took it
        return None


def _result(generation: Generation) -> InferenceResult:
    generation.wait()
    return generation.result()
