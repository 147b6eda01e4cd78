"""What the NVIDIA driver shows, without the CUDA toolkit."""

from __future__ import annotations

import functools
import sys

__all__ = ["cuda_devices"]


@functools.cache
def cuda_devices() -> int | None:
    """How many GPUs this process may use (`CUDA_VISIBLE_DEVICES` counts); None where there is no driver."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
