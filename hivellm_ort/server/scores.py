"""Scores of given answers on their way through the queue, the time and the end of the server, as `Answers` go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from hivellm_ort.errors import ContextLengthError
from hivellm_ort.options import ScoreOptions
from hivellm_ort.result import ScoreResult
from hivellm_ort.server.errors import ApiError
from hivellm_ort.server.generation import too_slow
from hivellm_ort.server.state import ServerState, stopping

__all__ = ["ScoreRequest", "score_all"]


class ScoreRequest(NamedTuple):
    """Answers whose probabilities are wanted.

    Attributes:
        field: of the request, for errors.
        options: with the prompt.
        answers: their texts.
    """

    field: str
    options: ScoreOptions
    answers: Sequence[str]


class _Running:
    """Scores that are being computed."""

    def __init__(self, tasks: Sequence[asyncio.Task[ScoreResult]]) -> None:
        self._tasks = tasks

    def cancel(self) -> None:
        """End them."""
        for task in self._tasks:
            task.cancel()


async def score_all(state: ServerState, name: str, asked: Sequence[ScoreRequest]) -> list[ScoreResult]:
    """The scores of all requests, computed side by side. Prompts that begin alike share what they begin with.

    Cancelling it ends them.

    Args:
        state: of the application.
        name: the expert.
        asked: each takes a place in the queue.

    Raises:
        ApiError: the queue is full, the time is over, the server stops, or a prompt is too long.
        ExpertError: a request cannot be answered.
    """
    state.admit(len(asked))
    tasks = [asyncio.create_task(_scored(state, name, one)) for one in asked]
    for task in tasks:
        task.add_done_callback(lambda _: state.leave())  # whatever becomes of it
    running = _Running(tasks)
    state.add(running)
    try:
        seconds = state.options.limits.request_timeout
        _, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for error in failed:
            if error is not None:
                raise error
        if any(task.cancelled() for task in tasks):
            raise stopping()
        if late:
            raise too_slow(seconds)
        return [task.result() for task in tasks]
    finally:
        running.cancel()
        state.remove(running)


async def _scored(state: ServerState, name: str, one: ScoreRequest) -> ScoreResult:
    try:
        return await state.manager.ascore(name, None, one.answers, **one.options)
    except ContextLengthError as error:
        # What the library says to do, to ask for fewer tokens, is of no use here.
        message = f"{one.field}: the input with this question does not fit the model's context: send a shorter input"
        raise ApiError(400, message, param=one.field, code="context_length_exceeded") from error
