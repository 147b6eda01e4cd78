"""Find the one ONNX Runtime of this environment, and say what is wrong with it where it does not start."""

from __future__ import annotations

import functools
import os
import platform
import sys
from types import ModuleType

from hivellm_ort.errors import ProviderError

__all__ = ["distributions", "import_onnxruntime"]

_INSTALL = (
    "install exactly one of: pip install 'hivellm-ort[cpu]', pip install 'hivellm-ort[cuda]', "
    "pip install 'hivellm-ort[directml]'"
)
# As the loaders of macOS, Linux and Windows put it.
_WRONG_ARCHITECTURE = ("incompatible architecture", "wrong ELF class", "not a valid Win32 application")


@functools.cache
def distributions() -> tuple[str, ...]:
    """Names of the installed distributions that bring the module `onnxruntime`, sorted."""
    import importlib.metadata  # slow to import, and only this needs it

    return tuple(sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ()))))


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off.

    Raises:
        ProviderError: none is installed, or several, which overwrite each other's files, or it cannot be loaded.
    """
    # Read when the library is loaded; both names have been in use.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
    found = distributions()
    if len(found) > 1:
        raise ProviderError(
            f"several ONNX Runtime distributions are installed and overwrite each other: {', '.join(found)}; "
            f"uninstall all of them, then {_INSTALL}"
        )
    try:
        import onnxruntime
    except Exception as error:  # what its own modules raise while they are loaded is of many types
        raise ProviderError(_explain(error, found)) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ProviderError(
            "the folder onnxruntime has no module in it, as after one of two distributions was uninstalled: "
            f"uninstall {', '.join(found) or 'all of them'} and delete the folder, then {_INSTALL}"
        )
    module: ModuleType = onnxruntime
    return module


def _explain(error: Exception, found: tuple[str, ...]) -> str:
    """What is wrong and what to do, for an error of `import onnxruntime`."""
    text = " ".join(str(error).split())
    installed = found[0] if found else "onnxruntime"
    if sys.maxsize < 2**32:
        return f"this Python has 32 bits, ONNX Runtime needs 64 ({text}): install a 64-bit Python, then {_INSTALL}"
    if any(sign in text for sign in _WRONG_ARCHITECTURE):
        return (
            f"{installed} and this Python are built for different processors ({text}); this Python runs as "
            f"{platform.machine()}: install a Python for the machine's own processor, make a new environment with "
            f"it, then {_INSTALL}"
        )
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        if found:
            return f"the files of {installed} are missing: pip install --force-reinstall {installed}"
        return f"ONNX Runtime is not installed: {_INSTALL}"
    if isinstance(error, ModuleNotFoundError):
        return f"{installed} needs the module {error.name}: pip install --force-reinstall {installed}"
    if "DLL load failed" in text:
        machine = "arm64" if platform.machine().lower() == "arm64" else "x64"
        return (
            f"{installed} cannot be loaded ({text}): the Microsoft Visual C++ runtime is missing or too old; install "
            f"https://aka.ms/vs/17/release/vc_redist.{machine}.exe and start again"
        )
    return f"{installed} cannot be imported ({text}): uninstall it, then {_INSTALL}"
