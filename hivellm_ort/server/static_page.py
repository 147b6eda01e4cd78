"""Serves the page at `/`: static files that load nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

__all__ = ["PATHS", "router"]

_FOLDER = Path(__file__).parent / "page"
# Fixed here, because the types of `mimetypes` depend on the system.
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_FILES = {
    "/" if file.name == "index.html" else f"/page/{file.name}": file
    for file in sorted(_FOLDER.iterdir())
    if file.suffix in _TYPES
}
PATHS = frozenset(_FILES)
"""The paths of the page's files."""

router = APIRouter(include_in_schema=False)


async def _send(request: Request) -> Response:
    """Send the file of a path."""
    file = _FILES[request.scope["route"].path]
    return FileResponse(file, media_type=_TYPES[file.suffix], headers=_HEADERS)


for _path in _FILES:
    router.add_api_route(_path, _send, methods=["GET", "HEAD"], response_model=None)
