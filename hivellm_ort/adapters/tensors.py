"""Read a safetensors file into float32 numpy arrays, bfloat16 included, with typed errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.errors import AdapterError

__all__ = ["parse_tensors", "read_file", "read_tensors"]

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a safetensors file as float32.

    Raises:
        AdapterError: the file is missing, truncated or malformed, or a tensor is not floating point or not finite.
    """
    return parse_tensors(read_file(path), path.name)


def read_file(path: Path) -> bytes:
    """The file's bytes; an `AdapterError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path.name} cannot be read: {error.strerror}") from error


def parse_tensors(content: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    """As `read_tensors`, from the file's bytes; errors name it `where`."""
    import safetensors

    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
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
