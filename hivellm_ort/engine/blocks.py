"""One buffer of keys or values: in the host's memory, shared with ONNX Runtime, or in a device's."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np

from hivellm_ort.engine.device_arrays import Array, ElementType, Memory, host_value

__all__ = ["Block", "DeviceBlock", "HostBlock"]


class Block(Protocol):
    """Zeros [rows, kv_heads, capacity, head_dim] to begin with."""

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        """Bind some rows as input `past` and output `present`, the same memory, or as input alone."""

    def read(self) -> Array:
        """The values, of the float type's storage; they may be changed, and then written."""

    def write(self, values: Array) -> None:
        """Make what `read` gave, changed, the values."""


class HostBlock:
    """A numpy array."""

    def __init__(self, shape: tuple[int, ...], kind: ElementType):
        self._array: Array = np.zeros(shape, kind.storage)
        self._kind = kind

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        """See `Block`."""
        bound = host_value(self._array[rows], self._kind)
        binding.bind_ortvalue_input(past, bound)
        if present is not None:
            binding.bind_ortvalue_output(present, bound)

    def read(self) -> Array:
        """The array itself."""
        return self._array

    def write(self, values: Array) -> None:
        """Nothing: what was read was changed in place."""


class DeviceBlock:
    """An OrtValue. Its values go through the host to be changed.

    Raises:
        MemoryError: the device has no room for it.
    """

    def __init__(self, shape: tuple[int, ...], kind: ElementType, memory: Memory):
        self._shape, self._kind, self._memory = shape, kind, memory
        try:
            self._value = memory.zeros(shape, kind.storage)
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise MemoryError(str(error)) from error

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        """See `Block`; some of several rows by their address, which must stay valid as long as they are bound."""
        count = rows.stop - rows.start
        if count == self._shape[0] and self._kind.in_numpy:
            binding.bind_ortvalue_input(past, self._value)
            if present is not None:
                binding.bind_ortvalue_output(present, self._value)
            return
        shape = (count, *self._shape[1:])
        size = prod(self._shape[1:]) * np.dtype(self._kind.storage).itemsize
        address = self._value.data_ptr() + rows.start * size
        where = (self._memory.device, self._memory.number, self._kind.onnx_type, shape, address)
        binding.bind_input(past, *where)
        if present is not None:
            binding.bind_output(present, *where)

    def read(self) -> Array:
        """A copy."""
        return np.array(self._value.numpy())

    def write(self, values: Array) -> None:
        """Copy them to the device."""
        self._value.update_inplace(values)
