"""Instructions of this CPU that the int8 and int4 kernels gain from, where the system tells them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

__all__ = ["cpu_flags"]

# By their names in Linux.
_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
_ARM = ("asimddp", "i8mm", "sve")
# Numbers of processor features in winnt.h, which has none for VNNI and AMX.
_WINDOWS_X86 = {"avx2": 40, "avx512f": 41}
_WINDOWS_ARM = {"asimddp": 43}


def cpu_flags() -> dict[str, bool]:
    """Whether the CPU has an instruction set, by its name in Linux; empty where the system does not tell."""
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
