"""What goes wrong, as OpenAI's API tells it: a status and `{"error": {message, type, param, code}}`."""

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
    "ApiError",
    "ErrorBody",
    "add_error_handlers",
    "as_api_error",
    "field_error",
    "internal_error",
]

_LOG = logging.getLogger("hivellm_ort")
_CLIENT, _SERVER = "invalid_request_error", "server_error"
_MOST_MESSAGE = 1000  # characters: what a client sent may be part of it
CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client went away; nobody gets it, and metrics count it."""


class ApiError(HTTPException):
    """What a client is told in place of an answer.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the field that is wrong; None for the whole.
        code: a name for programs.
        headers: of the response.
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


class _ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response that is no answer."""

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
    429: "Too many answers wait; ask again after `Retry-After` seconds.",
    431: "There are too many headers.",
    500: "The server failed.",
    503: "The model is unavailable, or the server is shutting down.",
    504: "The answer took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _STATUSES.items()
}
ERRORS["default"] = {"model": ErrorBody, "description": "Any other error."}
"""What every route may answer besides, for its documentation."""


class _Meaning(NamedTuple):
    status: int
    code: str
    param: str | None = None


# A type stands before those that it is derived from.
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
# What pydantic calls things, and JSON.
_WORDS = {
    "a valid dictionary or object to extract fields from": "an object",
    "a valid dictionary": "an object",
    "None": "null",
}
_INSTANCE = re.compile(r" or instance of \w+")  # of our classes, which nobody else knows
_FIRST_WORD = re.compile(r"[a-z_]+(?=[\[: ])")


def as_api_error(
    error: BaseException, remove_paths: Callable[[str], str], *, began: bool = False
) -> ApiError:
    """What a client is told of an error.

    Args:
        error: what was raised.
        remove_paths: takes the paths of this machine out of a message.
        began: whether the answer had begun: an error that is not about the request is the server's then.
    """
    if isinstance(error, ApiError):
        return error
    meaning = next((meaning for kind, meaning in _MEANINGS if isinstance(error, kind)), None)
    if meaning is None or (began and type(error) is InferenceError):
        _LOG.error("a request of the server failed", exc_info=error)
        return internal_error()
    if isinstance(error, LoadError):  # the operator's to mend, and the log may name files
        _LOG.error("an expert is unavailable: %s", error)
        message = "the expert is unavailable: the log of the server says why"
        return ApiError(meaning.status, message, param=meaning.param, code=meaning.code)
    message = remove_paths(str(error))
    return ApiError(
        meaning.status, message, param=meaning.param or _field_of(message, FIELDS), code=meaning.code
    )


def internal_error() -> ApiError:
    """The error of a fault of ours, of which nothing is told."""
    return ApiError(500, "the server failed: its log says why", code="internal_error")


def field_error(param: str, message: str, *, code: str = "invalid_value", status: int = 400) -> ApiError:
    """The error of a field that has a value which it cannot have here."""
    return ApiError(status, f"{param}: {message}", param=param, code=code)


def add_error_handlers(app: FastAPI, remove_paths: Callable[[str], str]) -> None:
    """Have every error of an application be an error object; `RequestTrackingMiddleware` sees to faults of ours.

    Args:
        app: the application.
        remove_paths: as for `as_api_error`.
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
    told = {
        404: ("there is no such route: see /openapi.json", "not_found"),
        405: ("the route has no such method: see /openapi.json", "method_not_allowed"),
    }
    message, code = told.get(error.status_code, (str(error.detail), None))
    return ApiError(error.status_code, message, code=code, headers=error.headers).response


def _on_malformed(request: Request, error: Exception) -> Response:
    """A body that is none of the schema: the first field that is wrong, and why."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    if error.body is None:
        return ApiError(400, "there is no body: send a JSON object", code="missing_body").response
    if not isinstance(error.body, dict):
        message = "the body is not JSON: send it with the header content-type: application/json"
        return ApiError(415, message, code="invalid_content_type").response
    faults = [(_place(error.body, fault), fault) for fault in error.errors()]
    where, fault = faults[0]
    # A value that may be of several types has a fault for each of them.
    same = {_lower(other["msg"]): None for place, other in faults if place == where}
    return _validation_error(where, {**fault, "msg": " or ".join(same)}, _fields_of(request)).response


def _fields_of(request: Request) -> set[str]:
    """The names of the fields that the body of a route may have."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return set()
    return {field.alias or name for name, field in model.model_fields.items()}


def _place(body: Any, fault: Mapping[str, Any]) -> list[str | int]:
    """Where in the body a fault is: its place without the names of types."""
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
            400, f"{param} is no field of this request{hint}", param=param, code="unknown_parameter"
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
    """The field that a message of the library begins with."""
    match = _FIRST_WORD.match(message)
    return match[0] if match is not None and match[0] in known else None
