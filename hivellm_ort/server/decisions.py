"""`/v1/decisions`: probabilities of given answers to questions about one input. Nothing is written."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.result import ScoreResult
from hivellm_ort.server.decision_questions import answer_of, answers_to, asked_at_the_end, text_of_question
from hivellm_ort.server.errors import ERRORS, refused
from hivellm_ort.server.generation import unless_client_leaves
from hivellm_ort.server.models import choose
from hivellm_ort.server.response_input import messages_of
from hivellm_ort.server.schemas.decisions import DecisionsBody
from hivellm_ort.server.scores import ScoreRequest, score_all
from hivellm_ort.server.state import state_of
from hivellm_ort.server.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(tags=["answers"], route_class=StrictRoute)


@router.post("/v1/decisions", responses=ERRORS, response_model=None)
async def decisions(body: DecisionsBody, request: Request) -> Response:
    """Answer questions about an input: a probability, a choice or a score each."""
    state = state_of(request)
    most = state.options.limits.max_questions
    if len(body.questions) > most:
        raise refused("questions", f"{len(body.questions)} questions, and {most} may be")
    turns = messages_of(body.input)
    chosen = await choose(state, body.model, messages=turns)
    asked = [
        ScoreRequest(
            f"questions[{index}]",
            {"messages": asked_at_the_end(turns, text_of_question(question))},
            answers_to(question),
        )
        for index, question in enumerate(body.questions)
    ]
    results = await unless_client_leaves(request, score_all(state, chosen.name, asked))
    answers = [answer_of(question, result) for question, result in zip(body.questions, results, strict=True)]
    document = {"model": chosen.name, "answers": answers, "usage": _usage(results)}
    return JSONResponse(document, headers=dict(chosen.headers))


def _usage(results: list[ScoreResult]) -> dict[str, Any]:
    """The counts of tokens. What several prompts begin with counts in each; it is cached in all but the first."""
    read = sum(result.prompt_tokens for result in results)
    cached = sum(result.cached_tokens for result in results)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read,
    }
