"""The OpenAI API for the experts of a manager, as a FastAPI application.

It needs the extra `server`.

>>> from hivellm_ort.server import ServerOptions, create_app
>>> app = create_app(manager, ServerOptions(keys=("secret",)))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivellm_ort.server.app import create_app
    from hivellm_ort.server.options import ServerLimits, ServerOptions

__all__ = ["ServerLimits", "ServerOptions", "create_app"]

# FastAPI is there with the extra only, and slow to import.
_HOMES = {"ServerLimits": "options", "ServerOptions": "options", "create_app": "app"}

if not TYPE_CHECKING:  # a checker that saw it would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
