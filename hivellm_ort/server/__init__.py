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

# FastAPI needs the extra and is slow to import.
_MODULES = {"ServerLimits": "options", "ServerOptions": "options", "create_app": "app"}

if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value
