"""Types of values in graphs, memory of devices, and the tensors that a graph takes from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hivellm_ort.adapters.tensors import bfloat16_as_float32
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["CACHE_TYPES", "FLOAT_TYPES", "Array", "ElementType", "Memory", "Tensor", "host_value"]

Array = NDArray[Any]
"""Values of an element type, as numpy keeps them."""


@dataclass(frozen=True)
class ElementType:
    """A type of values as a graph has it and as numpy keeps it.

    Attributes:
        name: as in `decoder.json`.
        storage: numpy type of its values; their bits, where numpy has no such type.
        onnx_type: its number in ONNX.
    """

    name: str
    storage: DTypeLike
    onnx_type: int

    @property
    def in_numpy(self) -> bool:
        """Whether numpy has this type."""
        return np.dtype(self.storage).kind != "u"

    def cast(self, values: NDArray[np.float32]) -> Array:
        """Finite float32 values, rounded to the nearest of this type.

        Raises:
            OverflowError: one is beyond the largest of this type.
        """
        if self.in_numpy:
            with np.errstate(over="ignore"):
                cast = values.astype(self.storage, copy=False)
            finite = cast.dtype == values.dtype or bool(np.isfinite(cast).all())
        else:
            bits = np.ascontiguousarray(values).view(np.uint32)
            # To the nearest; of two that are as near, to the one with an even last bit.
            cast = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            finite = bool(((cast & 0x7F80) != 0x7F80).all())
        if not finite:
            raise OverflowError(f"a value is beyond the largest of {self.name}")
        return cast

    def widen(self, stored: Array) -> NDArray[np.float32]:
        """Values of this type as float32."""
        if self.in_numpy:
            return stored.astype(np.float32)
        return bfloat16_as_float32(stored)


FLOAT_TYPES = {
    kind.name: kind
    for kind in (
        ElementType("float32", np.float32, 1),
        ElementType("float16", np.float16, 10),
        ElementType("bfloat16", np.uint16, 16),
    )
}
"""Every float type that a graph may have, by name."""

CACHE_TYPES = {**FLOAT_TYPES, "int8": ElementType("int8", np.int8, 3)}
"""Every type that keys and values may have, by name; scales of integers are the graph's own."""


def host_value(array: Array, kind: ElementType) -> Any:
    """An OrtValue that shares its memory with an array of `kind.storage`."""
    values = import_onnxruntime().OrtValue
    if kind.in_numpy:
        return values.ortvalue_from_numpy(array)
    return values.ortvalue_from_numpy_with_onnx_type(array, kind.onnx_type)


@dataclass(frozen=True)
class Memory:
    """Memory of a device that ONNX Runtime can put tensors in.

    Attributes:
        device: its name in ONNX Runtime, as `cuda`.
        number: which of several.
    """

    device: str
    number: int = 0

    def put(self, array: Array, kind: ElementType) -> Any:
        """An OrtValue there with the values of an array of `kind.storage`."""
        values = import_onnxruntime().OrtValue
        if kind.in_numpy:
            return values.ortvalue_from_numpy(array, self.device, self.number)
        value = values.ortvalue_from_shape_and_type(array.shape, kind.onnx_type, self.device, self.number)
        value.update_inplace(host_value(array, kind))
        return value

    def zeros(self, shape: tuple[int, ...], storage: DTypeLike) -> Any:
        """An OrtValue there, of a type of numpy, filled with zeros."""
        value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, storage, self.device, self.number
        )
        value.update_inplace(np.zeros(shape, storage))
        return value


class Tensor:
    """A float input of a graph: in the host's memory, and from its first use on also in that of a device.

    Attributes:
        array: the values, of `kind.storage`; not to be changed.
        kind: their type.
    """

    def __init__(self, array: Array, kind: ElementType):
        self.array, self.kind = array, kind
        self._value = host_value(array, kind)
        self._copies: dict[Memory, Any] = {}

    def value(self, memory: Memory | None) -> Any:
        """The OrtValue to bind: that of the host for None, else one in the device's memory.

        Raises:
            OutOfMemoryError: the device has no room for it.
        """
        if memory is None:
            return self._value
        if memory not in self._copies:
            try:
                self._copies[memory] = memory.put(self.array, self.kind)
            except Exception as error:  # ONNX Runtime raises a dozen types of its own
                raise OutOfMemoryError(
                    f"{self.array.nbytes} bytes of an adapter cannot be put into the memory of {memory.device}:"
                    f"{memory.number}: {error}"
                ) from error
        return self._copies[memory]

    def numpy(self) -> NDArray[np.float32]:
        """The values as float32."""
        return self.kind.widen(self.array)
