"""The application: routes, and what stands before them."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from hivellm_ort import __version__
from hivellm_ort.manager import ExpertManager
from hivellm_ort.paths import StrPath
from hivellm_ort.server import (
    chat,
    completions,
    decisions,
    loading,
    models,
    responses,
    static_page,
    status,
    tokens,
)
from hivellm_ort.server.errors import add_error_handlers
from hivellm_ort.server.http_metrics import HttpMetrics
from hivellm_ort.server.middleware import (
    AuthenticationMiddleware,
    HostMiddleware,
    LimitsMiddleware,
    RequestTrackingMiddleware,
)
from hivellm_ort.server.options import ServerOptions
from hivellm_ort.server.state import ServerState

__all__ = ["build_middleware", "create_app"]

_EXPOSED_HEADERS = ("x-request-id", "x-hivellm-expert", "x-hivellm-routing", "retry-after")


def create_app(
    manager: ExpertManager, options: ServerOptions | None = None, *, folders: Iterable[StrPath] = ()
) -> FastAPI:
    """The API for the experts of a manager, to be run by a server of ASGI or mounted in another application.

    The manager stays the caller's: load experts before or while it runs, and close it after the application.
    `app.state.server` is what the requests share.

    Args:
        manager: whose experts are served.
        options: who may ask, and how much; anybody of this machine by default.
        folders: where packages are; error messages leave them out.
    """
    options = options or ServerOptions()
    state = ServerState(manager, options, folders)
    app = FastAPI(
        title="hivellm_ort",
        description="Experts behind OpenAI's API.",
        version=__version__,
        middleware=build_middleware(options, state.metrics),
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.server = state
    add_error_handlers(app, state.remove_paths)
    for routes in (chat, completions, responses, decisions, models, loading, tokens, status):
        app.include_router(routes.router)
    if options.page:
        app.include_router(static_page.router)
    return app


def build_middleware(options: ServerOptions, metrics: HttpMetrics) -> list[Middleware]:
    """What stands before every route.

    Args:
        options: who may ask, and how much.
        metrics: where requests are counted.
    """
    found = [
        Middleware(RequestTrackingMiddleware, metrics=metrics),
        Middleware(LimitsMiddleware, limits=options.limits),
        Middleware(HostMiddleware, allowed=options.allowed_hosts),
    ]
    if options.allowed_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(options.allowed_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=list(_EXPOSED_HEADERS),
            )
        )
    if options.keys:
        open_paths = {"/health", *(static_page.PATHS if options.page else ())}
        found.append(Middleware(AuthenticationMiddleware, keys=options.keys, open_paths=open_paths))
    return found
