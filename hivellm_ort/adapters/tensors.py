"""Reads safetensors files into float32 numpy arrays, bfloat16 included."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.errors import AdapterError
from hivellm_ort.paths import StrPath

__all__ = [
    "EMBEDDINGS",
    "PREFIX",
    "AdapterTensors",
    "bfloat16_as_float32",
    "plain_name",
    "read_tensors",
    "same_values",
    "shaped",
    "table_digest",
]

Array = NDArray[np.float32]

PREFIX = "base_model.model."
"""The prefix of module names in PEFT's files."""

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""The tables that `save_embedding_layers` stores whole, by their names in the base model."""

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
# Names that torch.compile, FSDP, activation checkpointing and a raw state dict put between those of modules.
_WRAPPERS = {
    "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer", "default", "modules_to_save",
    "token_adapter",
}  # fmt: skip
_ROOT = re.compile(r"(?:module\.)?(?:base_model\.model\.)*")


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of an adapter, by the names of current PEFT without `PREFIX`.

    Attributes:
        arrays: float32 arrays; the magnitudes of DoRA are `<module>.lora_magnitude_vector`.
        keys: The name of each in the file.
        embeddings: Whole stored tables of `EMBEDDINGS`, float32 [rows, hidden]; not in `arrays`.
    """

    arrays: Mapping[str, Array]
    keys: Mapping[str, str]
    embeddings: Mapping[str, Array]

    @classmethod
    def from_file(cls, path: StrPath, *, saved: tuple[str, ...] = ()) -> AdapterTensors:
        """Read `adapter_model.safetensors`, also if the model was wrapped when it was saved.

        Args:
            path: The file.
            saved: `modules_to_save`. An embedding listed there is part of the adapter and goes into `arrays`.

        Raises:
            AdapterError: As `read_tensors`, or two names mean the same tensor.
        """
        path = Path(path)
        arrays: dict[str, Array] = {}
        keys: dict[str, str] = {}
        for key, array in read_tensors(path).items():
            name = plain_name(key)
            if name in keys:
                raise AdapterError(
                    f"{path.name}: tensors {keys[name]} and {key} mean the same: save one adapter by itself with "
                    "save_pretrained"
                )
            arrays[name], keys[name] = array, key
        whole = [name for name in EMBEDDINGS if name.split(".")[-2] not in saved]
        embeddings = {name: arrays.pop(name) for name in whole if name in arrays}
        return cls(arrays, keys, embeddings)


def read_tensors(path: Path) -> dict[str, Array]:
    """Return all tensors of a safetensors file as float32.

    Raises:
        AdapterError: The file is missing, truncated or malformed, or a tensor is not floating point or not finite.
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
            array = bfloat16_as_float32(np.frombuffer(data, np.uint16))
        elif dtype in _DTYPES:
            array = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32, copy=False)
        else:
            raise AdapterError(f"{where}: tensor {name} has dtype {dtype}; expected F32, F16 or BF16")
        if not np.isfinite(array).all():
            raise AdapterError(f"{where}: tensor {name} holds NaN or infinity")
        tensors[name] = shaped(array, entry["shape"], f"{where}: tensor {name}")
    return tensors


def shaped(values: Array, shape: Sequence[int], where: str) -> Array:
    """Return values of a safetensors file in their shape. The library has checked the product of the sizes.

    Raises:
        AdapterError: One size is 0, and the other sizes are too many or too large for an array.
    """
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise AdapterError(f"{where} has the shape {str(shape)[:80]}, which no array has: {error}") from error


def bfloat16_as_float32(stored: NDArray[np.uint16]) -> Array:
    """Return bfloat16 values, stored as uint16, as float32. A bfloat16 is the upper half of a float32."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def same_values(found: Array, wanted: Array) -> bool:
    """Return whether `found` equals `wanted`, or `wanted` rounded to bfloat16 or float16."""
    if found.shape != wanted.shape:
        return False
    if np.array_equal(found, wanted):
        return True
    difference, size = np.abs(found - wanted), np.abs(wanted)
    if not (np.ascontiguousarray(found).view(np.uint32) & 0xFFFF).any():
        return bool((difference <= size * 2.0**-8).all())
    with np.errstate(over="ignore"):
        half = np.array_equal(found.astype(np.float16).astype(np.float32), found)
    return half and bool((difference <= size * 2.0**-11 + 2.0**-25).all())


def table_digest(values: Array) -> str:
    """Return the SHA-256 of an array's values as little-endian float32, in hex."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()


def plain_name(key: str) -> str:
    """Return the name that `AdapterTensors` gives a tensor of an adapter.

    `base_model.model.model.layers.0.q_proj.lora_A.default.weight` is `model.layers.0.q_proj.lora_A.weight`.
    """
    name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    name = _ROOT.sub("", name, count=1)
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name
