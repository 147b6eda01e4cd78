"""Read a safetensors file into float32 numpy arrays, bfloat16 included, with typed errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.errors import AdapterError

__all__ = ["read_tensors"]

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a safetensors file as float32.

    Raises:
        AdapterError: the file is missing, truncated or malformed, or a tensor is not floating point or not finite.
    """
    import safetensors

    where = path.name
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise AdapterError(f"{where} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{where} is truncated or not a safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        data, dtype = entry["data"], entry["dtype"]
        if dtype == "BF16":
            array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif dtype in _DTYPES:
            array = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32, copy=False)
        else:
            raise AdapterError(f"{where}: tensor {name} has dtype {dtype}; expected F32, F16 or BF16")
        if not np.isfinite(array).all():
            raise AdapterError(f"{where}: tensor {name} holds NaN or infinity")
        tensors[name] = array.reshape(entry["shape"])
    return tensors
