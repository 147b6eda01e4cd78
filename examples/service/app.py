"""An HTTP service for several experts: answers, streams, metrics.

uvicorn --factory app:create_app --app-dir examples/service
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from question import Question
from settings import Settings

from hivellm_ort import (
    PROMETHEUS_CONTENT_TYPE,
    AsyncTextStream,
    ContextLengthError,
    ExpertError,
    ExpertManager,
    GrammarError,
    InferenceResult,
    LoadError,
    OptionError,
    OptionTypeError,
    OutOfMemoryError,
    UnknownExpertError,
)

__all__ = ["create_app"]

# A type stands before those that it is derived from. Any other ValueError is a bug.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownExpertError, 404),
    (OutOfMemoryError, 503),
    (LoadError, 503),
    (OptionError, 422),
    (OptionTypeError, 422),
    (ContextLengthError, 422),
    (GrammarError, 422),
    (ExpertError, 500),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service.

    Args:
        settings: what it loads; from the environment by default.

    Raises:
        ValueError: the environment names no experts, or is malformed.
    """
    settings = settings or Settings.from_environment()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.manager = manager = await asyncio.to_thread(_load, settings)
        try:
            yield
        finally:
            await asyncio.to_thread(manager.close)

    app = FastAPI(title="HiveLLM experts", lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(ExpertError, _on_error)
    app.add_exception_handler(Exception, _on_bug)
    app.post("/generate")(generate)
    app.post("/stream")(stream)
    app.get("/experts")(experts)
    app.get("/metrics")(metrics)
    app.get("/health")(health)
    return app


async def generate(question: Question, request: Request) -> dict[str, Any]:
    """The whole answer."""
    manager = _manager(request)
    name = question.chosen(manager)
    return _document(await manager.agenerate(name, question.prompt, **question.options()))


async def stream(question: Question, request: Request) -> StreamingResponse:
    """The answer piece by piece, as server-sent events; the generation ends when the client goes away.

    Events without a name hold `{"text": …}`. The last one is `done` with all of the result, or `error`.
    """
    manager = _manager(request)
    answer = manager.agenerate_stream(question.chosen(manager), question.prompt, **question.options())
    # What is wrong with the request comes with the first piece, in time for a status code.
    first = await anext(answer, "")
    return StreamingResponse(_events(answer, first), media_type="text/event-stream")


def experts(request: Request) -> list[dict[str, Any]]:
    """The experts and the state of each."""
    infos = _manager(request).list_loaded_experts()
    return [{**dataclasses.asdict(info), "verdict": str(info.verdict)} for info in infos]


def metrics(request: Request) -> Response:
    """Counters and histograms for Prometheus."""
    return Response(_manager(request).metrics.prometheus(), media_type=PROMETHEUS_CONTENT_TYPE)


def health(request: Request) -> dict[str, Any]:
    """That the service runs, and what is in memory."""
    return {"status": "ok", **_manager(request).stats()}


async def _events(answer: AsyncTextStream, first: str) -> AsyncIterator[str]:
    try:
        if first:
            yield _event({"text": first})
        async for piece in answer:
            yield _event({"text": piece})
        yield _event(_document(answer.result), name="done")
    except ExpertError as error:
        yield _event(_error(error), name="error")
    finally:
        answer.cancel()  # where the client went away; does nothing after the end


def _event(document: Any, *, name: str | None = None) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _document(result: InferenceResult) -> dict[str, Any]:
    return {
        "text": result.text,
        "reasoning": result.reasoning,
        "expert": result.expert,
        "finish_reason": result.finish_reason,
        "grammar_complete": result.grammar_complete,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "completion_tokens": result.completion_tokens,
        "timings": dataclasses.asdict(result.timings),
    }


def _error(error: Exception) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _on_error(_request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return JSONResponse(_error(error), status)


def _on_malformed(_request: Request, error: Exception) -> JSONResponse:
    """A body that is no `Question`: where it is wrong, and why."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = "; ".join(
        f"{'.'.join(map(str, fault['loc'][1:])) or 'body'}: {fault['msg']}" for fault in error.errors()
    )
    return JSONResponse({"error": {"type": "RequestValidationError", "message": faults}}, 422)


def _on_bug(_request: Request, _error: Exception) -> JSONResponse:
    """What nobody foresaw: the traceback is in the server's log, and nothing of it goes to the client."""
    return JSONResponse({"error": {"type": "InternalServerError", "message": "see the log"}}, 500)


def _manager(request: Request) -> ExpertManager:
    manager: ExpertManager = request.app.state.manager
    return manager


def _load(settings: Settings) -> ExpertManager:
    manager = ExpertManager(
        max_loaded_experts=settings.max_loaded_experts,
        memory_budget=settings.memory_budget,
        threads=settings.threads,
        trust=settings.trust,
    )
    try:
        manager.load_experts(settings.experts, base=settings.base)
    except BaseException:
        manager.close()
        raise
    return manager
