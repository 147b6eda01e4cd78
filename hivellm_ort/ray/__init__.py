"""Runs the server on several machines with Ray Serve.

It needs the extra `ray`. A configuration of Ray Serve imports `hivellm_ort.ray:build_app`:

>>> from ray import serve
>>> from hivellm_ort.ray import build_app
>>> serve.run(build_app({"experts": {"sql": "/models/expert-sql.expert"}}))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivellm_ort.lazy import lazy_attributes

if TYPE_CHECKING:
    from hivellm_ort.ray.application import build_app
    from hivellm_ort.ray.arguments import ClusterArguments

__all__ = ["ClusterArguments", "build_app"]

# Ray needs the extra and is slow to import.
_MODULES = {"ClusterArguments": "arguments", "build_app": "application"}

if not TYPE_CHECKING:  # type checkers would accept every name
    __getattr__ = lazy_attributes(__name__, _MODULES)
