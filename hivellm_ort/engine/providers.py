"""Find the one ONNX Runtime of this environment and choose a device."""

from __future__ import annotations

import functools
import os
from types import ModuleType

from hivellm_ort.errors import ProviderError

__all__ = ["choose_provider", "import_onnxruntime"]

_INSTALL = (
    "install exactly one of: pip install 'hivellm-ort[cpu]', pip install 'hivellm-ort[cuda]', "
    "pip install 'hivellm-ort[directml]'"
)
_PROVIDERS = {"cpu": "CPUExecutionProvider"}


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off.

    Raises:
        ProviderError: none is installed, or several, which overwrite each other's files.
    """
    import importlib.metadata  # slow to import, and only this needs it

    # Read when the library is loaded; both names have been in use.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
    found = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ())))
    if len(found) > 1:
        raise ProviderError(
            f"several ONNX Runtime distributions are installed and overwrite each other: {', '.join(found)}; "
            f"uninstall all of them, then {_INSTALL}"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(f"ONNX Runtime cannot be imported ({error}): {_INSTALL}") from error
    module: ModuleType = onnxruntime
    return module


def choose_provider(device: str | None, target: str) -> str:
    """The execution provider for `device` (None or `auto`: what the bundle's graphs were made for).

    Raises:
        ProviderError: the device is unknown, or the bundle holds no graph for it.
    """
    wanted = target if device in (None, "auto") else str(device).partition(":")[0]
    if wanted != target:
        raise ProviderError(
            f"device {device!r}: this bundle's graphs were exported for {target!r}; use device={target!r} or export "
            "again with another --target"
        )
    if target not in _PROVIDERS:
        raise ProviderError(f"graphs for target {target!r} cannot be run by this version of hivellm-ort")
    return _PROVIDERS[target]
