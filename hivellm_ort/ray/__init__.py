"""The server's application on several machines, with Ray Serve.

It needs the extra `ray`. The configuration of Ray Serve names `hivellm_ort.ray:build_app`:

>>> from ray import serve
>>> from hivellm_ort.ray import build_app
>>> serve.run(build_app({"experts": {"sql": "/models/expert-sql.expert"}}))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivellm_ort.ray.application import build_app
    from hivellm_ort.ray.arguments import ClusterArguments

__all__ = ["ClusterArguments", "build_app"]

# Ray is there with the extra only, and slow to import.
_HOMES = {"ClusterArguments": "arguments", "build_app": "application"}

if not TYPE_CHECKING:  # a checker that saw it would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
