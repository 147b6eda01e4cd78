"""Builds the FastAPI application: routes and middleware."""

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
    """Return the application that serves the experts of a manager.

    Run it with an ASGI server, or mount it in another application. The caller owns the manager: load experts before
    or while the application runs, and close the manager after the application has ended.
    `app.state.server` is the `ServerState`.

    Args:
        manager: The manager of the experts.
        options: Access and limits. By default the server answers every client of this machine.
        folders: Folders with packages. Error messages leave out their paths.
    """
    options = options or ServerOptions()
    state = ServerState(manager, options, folders)
    app = FastAPI(
        title="hivellm_ort",
        description="Experts behind OpenAI's API.",
        version=__version__,
        middleware=build_middleware(options, state.metrics),
        docs_url=None,  # this page and ReDoc load scripts from other hosts
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
    """Return the middleware of the application, outermost first.

    Args:
        options: Access and limits.
        metrics: Counts the requests.
    """
    middleware = [
        Middleware(RequestTrackingMiddleware, metrics=metrics),
        Middleware(LimitsMiddleware, limits=options.limits),
        Middleware(HostMiddleware, allowed=options.allowed_hosts),
    ]
    if options.allowed_origins:
        middleware.append(
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
        middleware.append(Middleware(AuthenticationMiddleware, keys=options.keys, open_paths=open_paths))
    return middleware
