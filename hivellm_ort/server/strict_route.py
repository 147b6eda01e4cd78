"""Reads request bodies as strictly as the files of a package."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from hivellm_ort.errors import ManifestError
from hivellm_ort.jsonfiles.reading import parse_json
from hivellm_ort.server.errors import ApiError

__all__ = ["StrictJSONRoute"]


_LARGE = 64 << 10
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class _StrictRequest(Request):
    async def json(self) -> Any:
        """Return the body: one object in UTF-8, without duplicate keys and NaN, at most 100 levels deep."""
        if not hasattr(self, "_json"):
            body = await self.body()
            # Parsing a large body takes about 0.1 s, which must not block the event loop.
            self._json = await asyncio.to_thread(_parsed, body) if len(body) > _LARGE else _parsed(body)
        return self._json


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = dict(parse_json(body, "the body"))  # a plain dict: the parsed object keeps the whole text
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except ManifestError as error:
        raise ApiError(400, str(error), code="invalid_json") from error
    except UnicodeEncodeError as error:
        message = "the body has half of a surrogate pair, which is not a character: correct the escape"
        raise ApiError(400, message, code="invalid_json") from error
    return value


class StrictJSONRoute(APIRoute):
    """A route that reads its body strictly. Errors give the line and column."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
