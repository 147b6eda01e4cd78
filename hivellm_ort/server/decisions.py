"""`/v1/decisions`: probabilities of given answers to questions about one input. No text is generated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.errors import ContextLengthError
from hivellm_ort.options import ScoreOptions
from hivellm_ort.result import ScoreResult
from hivellm_ort.server.decision_questions import answer_labels, append_question, build_answer, question_text
from hivellm_ort.server.errors import ERRORS, ApiError, field_error
from hivellm_ort.server.generation import cancel_on_disconnect, timeout_error
from hivellm_ort.server.models import choose_expert
from hivellm_ort.server.response_input import messages_from_items
from hivellm_ort.server.schemas.decisions import DecisionsBody
from hivellm_ort.server.state import ServerState, server_state, shutting_down
from hivellm_ort.server.strict_route import StrictJSONRoute

__all__ = ["router"]

router = APIRouter(tags=["answers"], route_class=StrictJSONRoute)


class _ScoreRequest(NamedTuple):
    """Answers to score.

    Attributes:
        field: The field of the body, for errors.
        options: Options, with the prompt as `messages`.
        answers: The answers.
    """

    field: str
    options: ScoreOptions
    answers: Sequence[str]


class _Running:
    """The tasks of the scores of one request."""

    def __init__(self, tasks: Sequence[asyncio.Task[ScoreResult]]) -> None:
        self._tasks = tasks

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()


@router.post("/v1/decisions", responses=ERRORS, response_model=None)
async def decisions(body: DecisionsBody, request: Request) -> Response:
    """Answer questions about an input. Each answer is a probability, a choice or a score."""
    state = server_state(request)
    most = state.options.limits.max_questions
    if len(body.questions) > most:
        raise field_error("questions", f"{len(body.questions)} questions; at most {most} are allowed")
    turns = messages_from_items(body.input)
    chosen = await choose_expert(state, body.model, messages=turns)
    requests = [
        _ScoreRequest(
            f"questions[{index}]",
            {"messages": append_question(turns, question_text(question))},
            answer_labels(question),
        )
        for index, question in enumerate(body.questions)
    ]
    results = await cancel_on_disconnect(request, _score_all(state, chosen.name, requests))
    answers = [
        build_answer(question, result) for question, result in zip(body.questions, results, strict=True)
    ]
    document = {"model": chosen.name, "answers": answers, "usage": _usage(results)}
    return JSONResponse(document, headers=dict(chosen.headers))


def _usage(results: list[ScoreResult]) -> dict[str, Any]:
    """Return the numbers of tokens. A shared prefix counts for each question, and is cached after the first."""
    read = sum(result.prompt_tokens for result in results)
    cached = sum(result.cached_tokens for result in results)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read,
    }


async def _score_all(state: ServerState, name: str, requests: Sequence[_ScoreRequest]) -> list[ScoreResult]:
    """Compute the scores of all requests concurrently. Shared prompt prefixes are computed once.

    If the task is cancelled, all scores are cancelled.

    Args:
        state: The state of the application.
        name: The expert.
        requests: The requests. Each takes a place in the queue.

    Raises:
        ApiError: The queue is full, the time limit is reached, the server is shutting down, or a prompt is too long.
        ExpertError: A request cannot be answered.
    """
    state.reserve(len(requests))
    tasks = [asyncio.create_task(_score(state, name, one)) for one in requests]
    for task in tasks:
        task.add_done_callback(lambda _: state.release())  # also after an error
    running = _Running(tasks)
    state.register(running)
    try:
        seconds = state.options.limits.request_timeout
        _, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for error in failed:
            if error is not None:
                raise error
        if any(task.cancelled() for task in tasks):
            raise shutting_down()
        if late:
            raise timeout_error(seconds)
        return [task.result() for task in tasks]
    finally:
        running.cancel()
        state.unregister(running)


async def _score(state: ServerState, name: str, one: _ScoreRequest) -> ScoreResult:
    try:
        return await state.manager.ascore(name, None, one.answers, **one.options)
    except ContextLengthError as error:
        # The message of the library advises fewer tokens, which does not help here.
        message = f"{one.field}: the input with this question does not fit the model's context: send a shorter input"
        raise ApiError(400, message, param=one.field, code="context_length_exceeded") from error
