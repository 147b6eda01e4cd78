"""Middleware: request ids, metrics, size and time limits, host names and API keys."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hivellm_ort.server.errors import CLIENT_CLOSED_REQUEST, ApiError, internal_error
from hivellm_ort.server.http_metrics import HttpMetrics
from hivellm_ort.server.options import ServerLimits

__all__ = ["AuthenticationMiddleware", "HostMiddleware", "LimitsMiddleware", "RequestTrackingMiddleware"]

_LOG = logging.getLogger("hivellm_ort")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_MOST_ADDRESS, _MOST_HEADERS, _MOST_HEAD = 8 << 10, 100, 32 << 10
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class RequestTrackingMiddleware:
    """Counts every request, sets `x-request-id`, and answers exceptions with status 500.

    The request id is the client's own if it is valid.

    Args:
        app: The next application.
        metrics: Counts the requests.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        begin, status, started = time.perf_counter(), CLIENT_CLOSED_REQUEST, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        self._metrics.in_progress += 1
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _LOG.error("the request %s failed", request_id)
            if not started:
                await internal_error().response(scope, receive, send_with_id)
            raise  # the ASGI server logs the exception
        finally:
            self._metrics.in_progress -= 1
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "")
            self._metrics.count(method, route, status, time.perf_counter() - begin)


class HostMiddleware:
    """Refuses requests whose header `Host` is not allowed.

    Starlette compares the names. Its own refusal would not be an error object.

    Args:
        app: The next application.
        allowed: Names. `*.example.com` allows all subdomains, `*` any name.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        known = False

        async def note(_scope: Scope, _receive: Receive, _send: Send) -> None:
            nonlocal known
            known = True

        async def drop(_message: Message) -> None:
            """Drop Starlette's own response."""

        # No redirect to `www.` of an allowed name: clients of an API expect an answer.
        await TrustedHostMiddleware(note, self._allowed, www_redirect=False)(scope, receive, drop)
        if known:
            await self._app(scope, receive, send)
            return
        message = "the header host names another server: the operator allows names with --allowed-host"
        await ApiError(400, message, code="invalid_host").response(scope, receive, send)


class AuthenticationMiddleware:
    """Refuses requests without one of the API keys.

    Args:
        app: The next application.
        keys: The keys, at least one.
        open_paths: Paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._open = frozenset(open_paths)
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or _path(scope) in self._open or self._known(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "the key is missing or wrong: send the header 'authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error.response(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode()
        # All keys are compared: the time must not show which key matches or how much of it.
        found = [hmac.compare_digest(key, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(found)


class LimitsMiddleware:
    """Ends requests that are too large or too slow, and responses that the client does not read.

    Args:
        app: The next application.
        limits: Limits of sizes and times.
    """

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = _check_head(scope)
        if fault is not None:
            await fault.response(scope, receive, send)
            return
        body = _BoundedBody(scope, receive, self._limits)
        reader = _Reader(send, self._limits.send_timeout)
        try:
            async with reader.watched():
                await self._app(scope, body.receive, reader.send)
        except TimeoutError:
            if not reader.slow:
                raise
            _LOG.warning("a client did not read for %g s: its response is ended", self._limits.send_timeout)


class _Reader:
    """Checks that a client reads in time. One timer serves all pieces: a timer per piece would cost too much."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._limit = asyncio.timeout(None)

    @property
    def slow(self) -> bool:
        """Whether the client left a piece unread for too long."""
        return self._limit.expired()

    async def send(self, message: Message) -> None:
        """Send a piece."""
        self._since = self._loop.time()
        await self._send(message)
        self._since = None

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raise TimeoutError in the body of the `with` statement if a piece is not read in time."""
        self._timer = self._loop.call_later(self._seconds, self._look)
        try:
            async with self._limit:
                yield
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        late = (now if self._since is None else self._since) + self._seconds
        if now >= late:
            self._limit.reschedule(now)
        else:
            self._timer = self._loop.call_at(late, self._look)


class _BoundedBody:
    """Receives a body within its limits. The limit of Starlette itself would not answer with an error object."""

    def __init__(self, scope: Scope, receive: Receive, limits: ServerLimits) -> None:
        self._receive, self._limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.body_timeout
        announced = Headers(scope=scope).get("content-length", "")
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else 0
        self._size = 0
        self._complete = False

    async def receive(self) -> Message:
        """Return the next message of the body, and after the last one the disconnect.

        Raises:
            ApiError: The body is too large or too slow.
        """
        if self._complete:
            return await self._receive()
        self._check_size(self._announced)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise _closing(
                408, f"the body did not arrive in {self._limits.body_timeout:g} s", "body_timeout"
            ) from None
        self._size += len(message.get("body", b""))
        self._check_size(self._size)
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _check_size(self, size: int) -> None:
        most = self._limits.max_body_bytes
        if size > most:
            raise _closing(413, f"the body is larger than {most} bytes: send less", "body_too_large")


def _check_head(scope: Scope) -> ApiError | None:
    """Return what is wrong with the address and the headers of a request; None if nothing is."""
    headers = scope["headers"]
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > _MOST_ADDRESS:
        return _closing(414, f"the address is longer than {_MOST_ADDRESS} bytes", "address_too_long")
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > _MOST_HEAD:
        most = f"{_MOST_HEADERS} headers of {_MOST_HEAD} bytes together"
        return _closing(431, f"there are more than {most}: send less", "headers_too_large")
    names = {name for name, _ in headers}
    if b"content-length" in names and b"transfer-encoding" in names:
        # A proxy that uses the other header would see a different next request (request smuggling).
        return _closing(
            400, "content-length and transfer-encoding must not be sent together", "invalid_framing"
        )
    return None


def _closing(status: int, message: str, code: str) -> ApiError:
    """Return an error that closes the connection, so that the rest of the body is not read."""
    return ApiError(status, message, code=code, headers={"connection": "close"})


def _path(scope: Scope) -> str:
    """Return the path inside this application, which may be mounted in another."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
