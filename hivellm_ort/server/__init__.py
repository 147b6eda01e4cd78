"""The OpenAI API for the experts of a manager, as a FastAPI application.

It needs the extra `server`.

>>> from hivellm_ort.server import ServerOptions, create_app
>>> app = create_app(manager, ServerOptions(keys=("secret",)))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivellm_ort.lazy import lazy_attributes

if TYPE_CHECKING:
    from hivellm_ort.server.app import create_app
    from hivellm_ort.server.options import ServerLimits, ServerOptions

__all__ = ["ServerLimits", "ServerOptions", "create_app"]

# FastAPI needs the extra and is slow to import.
_MODULES = {"ServerLimits": "options", "ServerOptions": "options", "create_app": "app"}

if not TYPE_CHECKING:  # type checkers would accept every name
    __getattr__ = lazy_attributes(__name__, _MODULES)
