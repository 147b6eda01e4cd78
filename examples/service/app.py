"""An application of your own with the experts' API in it.

uvicorn --factory app:create_app --app-dir examples/service
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from fastapi import FastAPI

from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerLimits, ServerOptions
from hivellm_ort.server import create_app as create_api

__all__ = ["create_app"]


def create_app(environment: Mapping[str, str] = os.environ) -> FastAPI:
    """The application: a route of its own, and OpenAI's API under `/ai`.

    Args:
        environment: `HIVELLM_EXPERTS` is `NAME=PATH`, several with the separator of `PATH` between them.
            `HIVELLM_API_KEYS` are the keys of clients, separated by commas.

    Raises:
        ValueError: it names no experts, or is malformed.
    """
    packages = _packages(environment.get("HIVELLM_EXPERTS", ""))
    keys = tuple(filter(None, environment.get("HIVELLM_API_KEYS", "").split(",")))
    manager = ExpertManager(trust="warn")

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(manager.load_experts, packages)
        try:
            yield
        finally:
            await asyncio.to_thread(manager.close)

    app = FastAPI(title="My application", lifespan=lifespan)

    @app.get("/title")
    async def title(text: str) -> dict[str, str]:
        """A route of your own: the manager is at hand without HTTP."""
        name = await asyncio.to_thread(manager.choose, text, or_base=True)
        result = await manager.agenerate(name, f"Write a title for: {text}", max_tokens=16)
        return {"title": result.text, "expert": name}

    options = ServerOptions(keys=keys, limits=ServerLimits(max_n=2, max_tokens=1024))
    folders = {path.absolute().parent for path in packages.values()}
    app.mount("/ai", create_api(manager, options, folders=folders))
    return app


def _packages(text: str) -> dict[str, Path]:
    pairs = [entry.partition("=") for entry in text.split(os.pathsep) if entry]
    packages = {name: Path(path) for name, _, path in pairs if name and path}
    if not packages or len(packages) != len(pairs):
        raise ValueError(
            f"HIVELLM_EXPERTS is {text!r}: it must be NAME=PATH, several with {os.pathsep!r} between them"
        )
    return packages
