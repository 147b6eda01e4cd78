"""The gateway of a cluster: checks keys and limits, and forwards requests to replicas."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.sse import format_sse_event
from ray.exceptions import RayActorError, RaySystemError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from hivellm_ort import __version__
from hivellm_ort.observability import PROMETHEUS_CONTENT_TYPE
from hivellm_ort.observability.exposition import MetricFamily, merged, prometheus_text
from hivellm_ort.ray.replica import HEARTBEAT_SECONDS
from hivellm_ort.server.app import build_middleware
from hivellm_ort.server.errors import ApiError, add_error_handlers, retry_error
from hivellm_ort.server.generation import cancel_on_disconnect
from hivellm_ort.server.http_metrics import HttpMetrics
from hivellm_ort.server.options import ServerOptions
from hivellm_ort.server.status import health
from hivellm_ort.server.streaming import json_event

__all__ = ["gateway_app"]

_LOG = logging.getLogger("hivellm_ort")
_TRIES = 3
_SILENT_SECONDS = 6 * HEARTBEAT_SECONDS
_NAMES_SECONDS = 1.0
_METRICS_SECONDS = 5.0
_PREFIX_CHARACTERS = 256
_BEGINNINGS = ("tools", "schema", "instructions", "messages", "prompt", "input")
_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "client",
)
_LOST = (RayActorError, RaySystemError, ReplicaUnavailableError, TaskCancelledError)


def gateway_app(experts: DeploymentHandle[Any], options: ServerOptions, queue_timeout: float) -> FastAPI:
    """Return the application of a gateway.

    Args:
        experts: The handle of the replicas.
        options: Access and limits.
        queue_timeout: Seconds in which a replica must accept a request.
    """
    metrics = HttpMetrics()
    app = FastAPI(
        title="hivellm_ort",
        version=__version__,
        middleware=build_middleware(options, metrics),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # that of the replicas is forwarded
    )
    add_error_handlers(app, str)
    app.get("/health")(health)

    @app.get("/metrics")
    async def all_metrics() -> Response:
        """Return the metrics of this gateway and of all replicas, with the label `replica`."""
        try:
            answers = await experts.broadcast("metrics").results_async(
                timeout_s=_METRICS_SECONDS, return_exceptions=True
            )
        except TimeoutError as error:
            raise retry_error(503, "a replica did not send its metrics: retry", "replica_lost") from error
        found: dict[str, list[MetricFamily]] = dict(
            one for one in answers if not isinstance(one, BaseException)
        )
        text = prometheus_text(merged("replica", {"gateway": metrics.families(), **found}))
        return Response(text, media_type=PROMETHEUS_CONTENT_TYPE)

    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        app.post(path)(_refuse_loading)
    app.mount("/", _Relay(experts, queue_timeout))
    return app


async def _refuse_loading() -> Response:
    """Refuse to load or unload an expert: only one of the replicas would do it."""
    message = "the configuration of the cluster lists the experts: change it and deploy it again"
    raise ApiError(403, message, code="loading_is_off")


class _Relay:
    """Forwards requests to replicas, and answers to clients.

    If a replica is lost, the request goes to another one. If a part of the answer has been sent, the client gets an
    error instead.

    Args:
        experts: The handle of the replicas.
        queue_timeout: Seconds in which a replica must accept a request.
    """

    def __init__(self, experts: DeploymentHandle[Any], queue_timeout: float) -> None:
        self._experts = experts
        self._queue_timeout = queue_timeout
        self._names: frozenset[str] = frozenset()
        self._read = -_NAMES_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        body = await request.body()
        begun: list[Message] = []

        async def send_and_note(message: Message) -> None:
            begun.append({**message, "body": b""})
            await send(message)

        try:
            await cancel_on_disconnect(request, self._relay(scope, body, begun, send_and_note))
        except ClientDisconnect:
            if not begun:
                raise

    async def _relay(self, scope: Scope, body: bytes, begun: list[Message], send: Send) -> None:
        model, beginning = _read_body(body)
        name = model if await self._is_expert(model) else ""
        handle = self._experts.options(
            stream=True, multiplexed_model_id=name, session_id=_session(name, beginning)
        )
        plain = {key: scope[key] for key in _SCOPE if key in scope}
        for left in reversed(range(_TRIES)):
            try:
                async for message in self._messages(handle, plain, body, model):
                    await send(message)
            except _LOST as error:
                _LOG.warning("a replica was lost: %s", error)
                if begun:
                    await self._end_with_error(begun, send)
                    return
                if not left:
                    raise _lost() from error
            else:
                return

    async def _messages(
        self, handle: DeploymentHandle[Any], scope: dict[str, Any], body: bytes, model: str
    ) -> AsyncIterator[Message]:
        """Yield the messages of a replica. The start of the response is held until the next message comes.

        Raises:
            ApiError: No replica accepts the request.
            ReplicaUnavailableError: The replica went silent or ended early. Other errors of `_LOST` are raised too.
        """
        held: list[Message] = []
        complete = False
        answer = handle.answer.remote(scope, body, model)
        try:
            seconds = self._queue_timeout
            while (messages := await self._within(seconds, answer)) is not None:
                seconds = _SILENT_SECONDS
                for message in messages:
                    if message["type"] == "http.response.start":
                        held.append(message)
                        continue
                    while held:
                        yield held.pop()
                    complete = not message.get("more_body", False)
                    yield message
        finally:
            answer.cancel()
        if not complete:
            raise ReplicaUnavailableError("it ended in the middle of an answer")

    async def _within(self, seconds: float, answer: Any) -> list[Message] | None:
        try:
            async with asyncio.timeout(seconds):
                found: list[Message] | None = await anext(answer, None)
        except TimeoutError:
            if seconds != _SILENT_SECONDS:
                raise retry_error(
                    503, f"no replica accepted the request in {seconds:g} s: retry", "no_replica"
                ) from None
            raise ReplicaUnavailableError("it went silent") from None
        except BackPressureError as error:
            raise retry_error(429, "too many requests wait for a replica: retry", "queue_full") from error
        except DeploymentUnavailableError as error:
            raise retry_error(503, "the experts could not be deployed: retry", "no_replica") from error
        return found

    async def _end_with_error(self, begun: list[Message], send: Send) -> None:
        """End a response that has begun, with an error event if it is a stream."""
        headers = Headers(raw=begun[0]["headers"])
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise _lost()  # the connection ends before the body does
        for event in (json_event(_lost().body), format_sse_event(data_str="[DONE]")):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _is_expert(self, name: str) -> bool:
        """Return whether the replicas know an expert. Other names must not reach Ray: it keeps every name forever."""
        if not name:
            return False
        if name not in self._names and time.monotonic() - self._read >= _NAMES_SECONDS:
            self._read = time.monotonic()
            try:
                async with asyncio.timeout(self._queue_timeout):
                    self._names = frozenset(await self._experts.names.remote())
            except (*_LOST, TimeoutError, BackPressureError, DeploymentUnavailableError) as error:
                _LOG.warning("the names of the experts are unknown: %s", error)
        return name in self._names


def _read_body(body: bytes) -> tuple[str, str]:
    """Return the model of a request and the beginning of its prompt. A replica reports faults of the body."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    parts = [document.get(field) for field in _BEGINNINGS]
    beginning = json.dumps([part[:1] if isinstance(part, list) else part for part in parts if part])
    model = document.get("model")
    return model if isinstance(model, str) else "", beginning[:_PREFIX_CHARACTERS]


def _session(name: str, beginning: str) -> str:
    return hashlib.blake2b(f"{name}\0{beginning}".encode(), digest_size=16).hexdigest() if beginning else ""


def _lost() -> ApiError:
    return retry_error(503, "the replica that answered was lost: retry", "replica_lost")
