"""Facts of the machine: processor, cores, memory bandwidth as measured, versions."""

from __future__ import annotations

import platform
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

__all__ = ["bandwidth", "facts", "processor"]

_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_BYTES = 1 << 29  # per thread: more than a cache holds, even a large one


def facts(threads: int) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    name, flags = processor()
    return {
        "processor": name,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "bandwidth_gb_s": round(bandwidth(threads) / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read from memory: sums of large arrays, the best of five."""
    arrays = [np.ones(_BYTES // 8, np.float64) for _ in range(threads)]

    def pass_over_all() -> float:
        readers = [threading.Thread(target=array.sum) for array in arrays]
        begin = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return time.perf_counter() - begin

    return threads * _BYTES / min(pass_over_all() for _ in range(5))


def processor() -> tuple[str, set[str]]:
    """The CPU's name, and its instruction sets by their names in Linux; none where the system does not tell."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), set()
    parts = (line.partition(":") for line in path.read_text().splitlines())
    lines = {key.strip(): value.strip() for key, _, value in parts}
    flags = lines.get("flags") or lines.get("Features") or ""  # x86, ARM
    return lines.get("model name", platform.machine()), set(flags.split())
