"""Errors in the form of OpenAI's API: a status and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hivellm_ort.errors import (
    ContextLengthError,
    ExpertError,
    GrammarError,
    InferenceError,
    LoadError,
    OptionError,
    OptionTypeError,
    OutOfMemoryError,
    UnknownExpertError,
)
from hivellm_ort.server.schemas.common import FIELDS, REFUSED

__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "ERRORS",
    "RETRY_SECONDS",
    "ApiError",
    "ErrorBody",
    "add_error_handlers",
    "as_api_error",
    "field_error",
    "internal_error",
    "retry_error",
]

RETRY_SECONDS = 1
"""Seconds after which a client may retry. An answer takes about that long."""

_LOG = logging.getLogger("hivellm_ort")
_CLIENT, _SERVER = "invalid_request_error", "server_error"
_MOST_MESSAGE = 1000  # characters; a message may quote what a client sent
CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client disconnected. It is counted in the metrics and never sent."""


class ApiError(HTTPException):
    """An error response.

    Args:
        status: The HTTP status.
        message: What is wrong, and what to do.
        param: The wrong field; None for the whole request.
        code: The error code for programs.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status_code, _CLIENT if self.status_code < 500 else _SERVER)

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        message = self.detail if len(self.detail) <= _MOST_MESSAGE else f"{self.detail[:_MOST_MESSAGE]}…"
        error = {"message": message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def response(self) -> Response:
        """The whole response."""
        return JSONResponse(self.body, self.status_code, self.headers)


def retry_error(status: int, message: str, code: str) -> ApiError:
    """Return the error for a request that may succeed after `RETRY_SECONDS`.

    Args:
        status: The HTTP status.
        message: What is wrong, and the advice to retry.
        code: The error code for programs.
    """
    return ApiError(status, message, code=code, headers={"retry-after": str(RETRY_SECONDS)})


class _ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: _ErrorObject


_STATUSES = {
    400: "The request is wrong; `param` names the field.",
    401: "The key is missing or wrong.",
    403: "The operator has not allowed this.",
    404: "There is no such model or route.",
    405: "The route has other methods.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is not `application/json`.",
    429: "Too many answers wait; retry after `Retry-After` seconds.",
    431: "There are too many headers.",
    500: "The server failed.",
    503: "The model is unavailable, or the server is shutting down.",
    504: "The answer took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _STATUSES.items()
}
ERRORS["default"] = {"model": ErrorBody, "description": "Any other error."}
"""The error responses of every route, for the OpenAPI document."""


class _Meaning(NamedTuple):
    status: int
    code: str
    param: str | None = None


# Subclasses come before their base classes.
_MEANINGS: tuple[tuple[type[Exception], _Meaning], ...] = (
    (UnknownExpertError, _Meaning(404, "model_not_found", "model")),
    (ContextLengthError, _Meaning(400, "context_length_exceeded")),
    (GrammarError, _Meaning(400, "invalid_grammar")),
    (OutOfMemoryError, _Meaning(503, "out_of_memory")),
    (OptionError, _Meaning(400, "invalid_value")),
    (OptionTypeError, _Meaning(400, "invalid_type")),
    (LoadError, _Meaning(503, "model_unavailable", "model")),
    (InferenceError, _Meaning(400, "cannot_answer")),
)
# Pydantic's terms, and those of JSON.
_WORDS = {
    "a valid dictionary or object to extract fields from": "an object",
    "a valid dictionary": "an object",
    "None": "null",
}
_INSTANCE = re.compile(r" or instance of \w+")  # names of internal classes
_FIRST_WORD = re.compile(r"[a-z_]+(?=[\[: ])")


def as_api_error(
    error: BaseException, remove_paths: Callable[[str], str], *, began: bool = False
) -> ApiError:
    """Return the error response for an exception.

    Args:
        error: The exception.
        remove_paths: Removes the paths of this machine from a message.
        began: Whether the answer had begun. A plain `InferenceError` is then an error of the server.
    """
    if isinstance(error, ApiError):
        return error
    meaning = next((meaning for kind, meaning in _MEANINGS if isinstance(error, kind)), None)
    if meaning is None or (began and type(error) is InferenceError):
        _LOG.error("a request of the server failed", exc_info=error)
        return internal_error()
    if isinstance(error, LoadError):  # only the operator can fix it, and only the log may name files
        _LOG.error("an expert is unavailable: %s", error)
        message = "the expert is unavailable: see the log of the server"
        return ApiError(meaning.status, message, param=meaning.param, code=meaning.code)
    message = remove_paths(str(error))
    return ApiError(
        meaning.status, message, param=meaning.param or _field_of(message, FIELDS), code=meaning.code
    )


def internal_error() -> ApiError:
    """Return the error response for a bug of the server. It has no details."""
    return ApiError(500, "the server failed: see its log", code="internal_error")


def field_error(param: str, message: str, *, code: str = "invalid_value", status: int = 400) -> ApiError:
    """Return the error response for a field with an invalid value."""
    return ApiError(status, f"{param}: {message}", param=param, code=code)


def add_error_handlers(app: FastAPI, remove_paths: Callable[[str], str]) -> None:
    """Make an application answer every error with an error object.

    `RequestTrackingMiddleware` handles exceptions that are bugs.

    Args:
        app: The application.
        remove_paths: As for `as_api_error`.
    """

    def on_error(_request: Request, error: Exception) -> Response:
        return as_api_error(error, remove_paths).response

    def on_leaving(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    for kind in (ApiError, ExpertError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, on_leaving)


def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    messages = {
        404: ("this route does not exist: see /openapi.json", "not_found"),
        405: ("the route does not have this method: see /openapi.json", "method_not_allowed"),
    }
    message, code = messages.get(error.status_code, (str(error.detail), None))
    return ApiError(error.status_code, message, code=code, headers=error.headers).response


def _on_malformed(request: Request, error: Exception) -> Response:
    """Return the error for a body that does not match the schema. It names the first wrong field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    if error.body is None:
        return ApiError(400, "there is no body: send a JSON object", code="missing_body").response
    if not isinstance(error.body, dict):
        message = "the body is not JSON: send it with the header content-type: application/json"
        return ApiError(415, message, code="invalid_content_type").response
    faults = [(_place(error.body, fault), fault) for fault in error.errors()]
    where, fault = faults[0]
    # A field that allows several types has one fault for each type.
    same = {_lower(other["msg"]): None for place, other in faults if place == where}
    return _validation_error(where, {**fault, "msg": " or ".join(same)}, _fields_of(request)).response


def _fields_of(request: Request) -> set[str]:
    """Return the names of the fields in the body of a route."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return set()
    return {field.alias or name for name, field in model.model_fields.items()}


def _place(body: Any, fault: Mapping[str, Any]) -> list[str | int]:
    """Return the path of a fault in the body, without the names of types."""
    where: list[str | int] = []
    parts = fault["loc"][1:]
    for count, part in enumerate(parts, 1):
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            if fault["type"] != "missing" or count < len(parts):
                continue
        where.append(part)
    return where


def _validation_error(
    where: Sequence[str | int], fault: Mapping[str, Any], known: Collection[str]
) -> ApiError:
    param = (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".") or None
    )
    kind, name = fault["type"], str(where[-1]) if where else ""
    if kind == "extra_forbidden":
        if len(where) == 1 and name in REFUSED:
            return ApiError(
                400, f"{name} is not supported: {REFUSED[name]}", param=param, code="unsupported_parameter"
            )
        near = difflib.get_close_matches(name, known, 1) if len(where) == 1 else []
        hint = f"; did you mean {near[0]}?" if near else ": leave it out"
        return ApiError(
            400, f"{param} is not a field of this request{hint}", param=param, code="unknown_parameter"
        )
    if kind == "missing":
        return ApiError(400, f"{param} is missing", param=param, code="missing_required_parameter")
    message = _INSTANCE.sub("", fault["msg"])
    for python, plain in _WORDS.items():
        message = message.replace(python, plain)
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _field_of(message: str, known: Collection[str]) -> str | None:
    """Return the field name at the beginning of a message of the library; None if there is none."""
    match = _FIRST_WORD.match(message)
    return match[0] if match is not None and match[0] in known else None
