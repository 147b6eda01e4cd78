"""OrtValues: the element types of a graph, the memory of a device, and tensors that are bound as graph inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hivellm_ort.adapters.tensors import bfloat16_as_float32
from hivellm_ort.engine.environment import import_onnxruntime
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["CACHE_TYPES", "FLOAT_TYPES", "Array", "DeviceMemory", "ElementType", "Tensor", "ort_value"]

Array = NDArray[Any]
"""Values of an element type, as numpy stores them."""


@dataclass(frozen=True)
class ElementType:
    """A type of tensor elements, in a graph and in numpy.

    Attributes:
        name: Its name in `decoder.json`.
        storage: The numpy type of its values. If numpy has no such type, the type of their bits.
        onnx_type: Its number in ONNX.
    """

    name: str
    storage: DTypeLike
    onnx_type: int

    @property
    def in_numpy(self) -> bool:
        """Whether numpy has this type."""
        return np.dtype(self.storage).kind != "u"

    def cast(self, values: NDArray[np.float32]) -> Array:
        """Round values to the nearest of this type.

        Args:
            values: Finite values, float32, of any shape.

        Returns:
            The rounded values, as numpy stores this type.

        Raises:
            OverflowError: A value is beyond the largest of this type.
        """
        if self.in_numpy:
            with np.errstate(over="ignore"):
                cast = values.astype(self.storage, copy=False)
            finite = cast.dtype == values.dtype or bool(np.isfinite(cast).all())
        else:
            bits = np.ascontiguousarray(values).view(np.uint32)
            # Round to nearest. A tie goes to the value whose last bit is even.
            cast = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            finite = bool(((cast & 0x7F80) != 0x7F80).all())
        if not finite:
            raise OverflowError(f"a value is beyond the largest of {self.name}")
        return cast

    def widen(self, stored: Array) -> NDArray[np.float32]:
        """Convert values of this type to float32.

        Args:
            stored: Values as numpy stores this type.

        Returns:
            The same values, float32.
        """
        if self.in_numpy:
            return stored.astype(np.float32)
        return bfloat16_as_float32(stored)


FLOAT_TYPES = {
    element_type.name: element_type
    for element_type in (
        ElementType("float32", np.float32, 1),
        ElementType("float16", np.float16, 10),
        ElementType("bfloat16", np.uint16, 16),
    )
}
"""Every float type that a graph may have, by name."""

CACHE_TYPES = {**FLOAT_TYPES, "int8": ElementType("int8", np.int8, 3)}
"""Every type that keys and values may have, by name. The scales of int8 are in the graph."""


def ort_value(array: Array, element_type: ElementType) -> Any:
    """Make an OrtValue that shares the memory of an array.

    Args:
        array: Values of `element_type.storage`. It must live as long as the OrtValue.
        element_type: Their type in the graph.

    Returns:
        The `onnxruntime.OrtValue`.
    """
    values = import_onnxruntime().OrtValue
    if element_type.in_numpy:
        return values.ortvalue_from_numpy(array)
    return values.ortvalue_from_numpy_with_onnx_type(array, element_type.onnx_type)


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device, for OrtValues.

    Attributes:
        device_type: Its name in ONNX Runtime, as `cuda`.
        device_id: Which device, if there are several.
    """

    device_type: str
    device_id: int = 0

    def put(self, array: Array, element_type: ElementType) -> Any:
        """Copy an array to the device.

        Args:
            array: Values of `element_type.storage`.
            element_type: Their type in the graph.

        Returns:
            An `onnxruntime.OrtValue` on the device.
        """
        values = import_onnxruntime().OrtValue
        if element_type.in_numpy:
            return values.ortvalue_from_numpy(array, self.device_type, self.device_id)
        value = values.ortvalue_from_shape_and_type(
            array.shape, element_type.onnx_type, self.device_type, self.device_id
        )
        value.update_inplace(ort_value(array, element_type))
        return value

    def zeros(self, shape: tuple[int, ...], storage: DTypeLike) -> Any:
        """Make a tensor of zeros on the device.

        Args:
            shape: Its shape.
            storage: Its numpy type.

        Returns:
            An `onnxruntime.OrtValue` on the device.
        """
        value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, storage, self.device_type, self.device_id
        )
        value.update_inplace(np.zeros(shape, storage))
        return value


class Tensor:
    """A float input of a graph. It is in host memory, and from its first use on also in the memory of a device.

    Args:
        array: The values, of `element_type.storage`.
        element_type: Their type.

    Attributes:
        array: The values. They must not be changed.
        element_type: Their type.
    """

    def __init__(self, array: Array, element_type: ElementType):
        self.array, self.element_type = array, element_type
        self._host_value = ort_value(array, element_type)
        self._device_values: dict[DeviceMemory, Any] = {}

    def ort_value(self, memory: DeviceMemory | None) -> Any:
        """Get the OrtValue to bind.

        Args:
            memory: The memory of a device. None means the host.

        Returns:
            The `onnxruntime.OrtValue`. It is made once for each memory.

        Raises:
            OutOfMemoryError: The device has no room for it.
        """
        if memory is None:
            return self._host_value
        if memory not in self._device_values:
            try:
                self._device_values[memory] = memory.put(self.array, self.element_type)
            except Exception as error:  # ONNX Runtime raises a dozen types of its own
                raise OutOfMemoryError(
                    f"{self.array.nbytes} bytes of an adapter cannot be put into the memory of {memory.device_type}:"
                    f"{memory.device_id}: {error}"
                ) from error
        return self._device_values[memory]

    def numpy(self) -> NDArray[np.float32]:
        """Convert the values to float32.

        Returns:
            The values, float32.
        """
        return self.element_type.widen(self.array)
