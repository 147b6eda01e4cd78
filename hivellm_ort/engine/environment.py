"""What this environment has: which ONNX Runtime, which of its providers, which instructions of the CPU."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from hivellm_ort.engine.providers import CPU, EXTRAS, Provider
from hivellm_ort.errors import ProviderError

__all__ = ["cpu_flags", "distributions", "import_onnxruntime", "unavailable_reason"]

_INSTALL = "install exactly one of: " + ", ".join(f"pip install 'hivellm-ort[{extra}]'" for extra in EXTRAS)
_SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
# Instruction sets by their names in Linux.
_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
_ARM = ("asimddp", "i8mm", "sve")
# Numbers of processor features in winnt.h. It has none for VNNI and AMX.
_WINDOWS_X86 = {"avx2": 40, "avx512f": 41}
_WINDOWS_ARM = {"asimddp": 43}
# What the loaders of macOS, Linux and Windows say.
_WRONG_ARCHITECTURE = ("incompatible architecture", "wrong ELF class", "not a valid Win32 application")


@functools.cache
def distributions() -> tuple[str, ...]:
    """List the installed distributions that contain the module `onnxruntime`.

    Returns:
        Their names, sorted.
    """
    import importlib.metadata  # slow to import, and only this function needs it

    return tuple(sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ()))))


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off.

    Returns:
        The module `onnxruntime`.

    Raises:
        ProviderError: No ONNX Runtime is installed, it cannot be loaded, or several are installed. Several
            overwrite each other's files.
    """
    # The library reads them when it is loaded. Both names have been in use.
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
    except Exception as error:  # its modules raise many types while they are loaded
        raise ProviderError(_explain(error, found)) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ProviderError(
            "the folder onnxruntime has no module in it, as after one of two distributions was uninstalled: "
            f"uninstall {', '.join(found) or 'all of them'} and delete the folder, then {_INSTALL}"
        )
    module: ModuleType = onnxruntime
    return module


def unavailable_reason(provider: Provider, device_id: int = 0) -> str | None:
    """Say why a device is unavailable here.

    Args:
        provider: The execution provider.
        device_id: Which device, if there are several.

    Returns:
        The reason and what to do about it. None if the device seems available.

    Raises:
        ProviderError: ONNX Runtime itself cannot be used.
    """
    if provider is CPU:
        return None
    runtime = import_onnxruntime()
    offered = runtime.get_available_providers()
    if provider.name in offered:
        return provider.device_fault(device_id)
    if provider.systems and sys.platform not in provider.systems:
        return f"it exists on {' and '.join(_SYSTEMS[system] for system in provider.systems)} only"
    installed = ", ".join(distributions()) or "onnxruntime"
    return (
        f"the installed {installed} {runtime.__version__} offers only {', '.join(offered)}: pip uninstall "
        f"{installed}, then pip install 'hivellm-ort[{provider.extra}]'"
    )


def cpu_flags() -> dict[str, bool]:
    """Find the instruction sets of this CPU that speed up the int8 and int4 kernels.

    Returns:
        Whether the CPU has an instruction set, by its name in Linux. Empty if the system does not say.
    """
    arm = platform.machine().lower() in ("arm64", "aarch64")
    if sys.platform == "win32":
        import ctypes

        has = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return {name: bool(has(number)) for name, number in (_WINDOWS_ARM if arm else _WINDOWS_X86).items()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    found = {
        flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()
    }
    return {name: name in found for name in (_ARM if arm else _X86)} if found else {}


def _explain(error: Exception, found: tuple[str, ...]) -> str:
    """Say what is wrong and what to do, for an error of `import onnxruntime`."""
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
