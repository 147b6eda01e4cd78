"""Checks for optional packages beside the runtime."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

__all__ = ["HAS_EXPORT", "requires_export"]

_NEEDED = ("torch", "transformers", "peft", "optimum", "onnx_ir")
_MISSING = [name for name in _NEEDED if find_spec(name) is None]
HAS_EXPORT = not _MISSING
"""Whether the extra `export` is installed."""


def requires_export() -> None:
    """Skip the calling test, module, or folder of a conftest if the extra `export` is not installed."""
    if _MISSING:
        pytest.skip(f"needs the extra export ({', '.join(_MISSING)})", allow_module_level=True)
