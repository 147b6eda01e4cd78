"""The KV cache of several rows: its buffers, and the outputs for keys and values of new tokens."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from hivellm_ort.contract import Architecture, past_names, present_names
from hivellm_ort.engine.ort_values import FLOAT_TYPES, Array, DeviceMemory, ElementType, ort_value
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["KVCache", "KVCacheSpec", "PresentOutputs"]


@dataclass(frozen=True)
class KVCacheSpec:
    """What kind of buffers a cache has.

    Attributes:
        element_type: The type of keys and values in the graph.
        memory: The memory of a device that holds them. None means the host.
        contiguous_rows: Whether a run may have several rows, so that their buffers must be contiguous. Otherwise
            each row on a device has buffers of its own, because not every device tells addresses.
    """

    element_type: ElementType = FLOAT_TYPES["float32"]
    memory: DeviceMemory | None = None
    contiguous_rows: bool = True


_HOST_FLOAT32 = KVCacheSpec()


class KVCache:
    """Buffers [rows, kv_heads, capacity, head_dim] of zeros, one for the keys and one for the values of each layer.

    Args:
        architecture: The architecture of the base model.
        spec: The type and memory of the buffers. By default they are float32 in host memory.
        rows: How many rows.
        capacity: How many tokens per row.

    Attributes:
        rows: How many rows.
        capacity: How many tokens per row.

    Raises:
        OutOfMemoryError: The buffers cannot be allocated. The message gives their size.
    """

    def __init__(
        self, architecture: Architecture, spec: KVCacheSpec = _HOST_FLOAT32, *, rows: int, capacity: int
    ):
        memory = spec.memory
        self.rows, self.capacity = rows, capacity
        self._element_type = spec.element_type
        self._row_shape = (architecture.num_key_value_heads, capacity, architecture.head_dim)
        layers = range(architecture.num_hidden_layers)
        self._past = [name for layer in layers for name in past_names(layer)]
        self._present = [name for layer in layers for name in present_names(layer)]
        self._rows_per_buffer = rows if spec.contiguous_rows or memory is None else 1
        shape = (self._rows_per_buffer, *self._row_shape)
        # One list per key or value of a layer. Its buffers have all rows.
        self._buffers: list[list[_Buffer]]
        try:
            self._buffers = [
                [
                    _HostBuffer(shape, spec.element_type)
                    if memory is None
                    else _DeviceBuffer(shape, spec.element_type, memory)
                    for _ in range(rows // self._rows_per_buffer)
                ]
                for _ in self._past
            ]
        except MemoryError as error:
            tokens = f"{rows} x {capacity}" if rows > 1 else f"{capacity}"
            raise OutOfMemoryError(
                f"a cache for {tokens} tokens needs {self.nbytes >> 20} MiB, which cannot be allocated: "
                "shorten the prompt, lower max_tokens, or take fewer rows at a time"
            ) from error

    @property
    def nbytes(self) -> int:
        """The bytes of all buffers."""
        item = np.dtype(self._element_type.storage).itemsize
        return len(self._past) * self.rows * int(np.prod(self._row_shape, dtype=np.int64)) * item

    def bind(self, binding: Any, rows: slice, *, present: bool = True) -> None:
        """Bind consecutive rows as `past_key_values.*`.

        Args:
            binding: An `onnxruntime.IOBinding`.
            rows: The rows.
            present: Whether to bind the same buffers as `present.*` too.
        """
        index, begin = divmod(rows.start, self._rows_per_buffer)
        part = slice(begin, begin + rows.stop - rows.start)
        for past_name, present_name, buffers in zip(self._past, self._present, self._buffers, strict=True):
            buffers[index].bind(binding, part, past_name, present_name if present else None)

    def copy_from(self, other: KVCache, lengths: Sequence[int]) -> None:
        """Copy the rows of a smaller cache.

        Args:
            other: The smaller cache.
            lengths: How many tokens each of its rows has.
        """
        for new_buffers, old_buffers in zip(self._buffers, other._buffers, strict=True):
            for index, old_buffer in enumerate(old_buffers):
                new, old = new_buffers[index].read(), old_buffer.read()
                begin = index * other._rows_per_buffer
                for row, length in enumerate(lengths[begin : begin + other._rows_per_buffer]):
                    new[row, :, :length] = old[row, :, :length]
                new_buffers[index].write(new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a row over another row.

        Args:
            source: The row to copy from.
            target: The row to copy to.
            length: How many tokens.
        """
        source_buffer, source_row = divmod(source, self._rows_per_buffer)
        target_buffer, target_row = divmod(target, self._rows_per_buffer)
        for buffers in self._buffers:
            new, old = buffers[target_buffer].read(), buffers[source_buffer].read()
            new[target_row, :, :length] = old[source_row, :, :length]
            buffers[target_buffer].write(new)

    def save(self, row: int, length: int) -> Array:
        """Copy the first tokens of a row out of the cache.

        Args:
            row: The row.
            length: How many tokens.

        Returns:
            Their keys and values, [2 * layers, kv_heads, length, head_dim].
        """
        heads, _, head_dim = self._row_shape
        shape = (len(self._buffers), heads, length, head_dim)
        # Pages of their own: arrays of many sizes that come and go would leave holes in the heap.
        storage = np.dtype(self._element_type.storage)
        pages = mmap.mmap(-1, storage.itemsize * int(np.prod(shape)))
        saved: Array = np.frombuffer(pages, storage).reshape(shape)
        index, buffer_row = divmod(row, self._rows_per_buffer)
        for part, buffers in zip(saved, self._buffers, strict=True):
            part[...] = buffers[index].read()[buffer_row, :, :length]
        return saved

    def load(self, row: int, saved: Array, length: int) -> None:
        """Copy saved tokens into a row.

        Args:
            row: The row.
            saved: The result of `save`.
            length: How many of its tokens.
        """
        index, buffer_row = divmod(row, self._rows_per_buffer)
        for part, buffers in zip(saved, self._buffers, strict=True):
            buffer = buffers[index].read()
            buffer[buffer_row, :, :length] = part[:, :length]
            buffers[index].write(buffer)

    def append(self, rows: slice, past_lengths: Sequence[int], count: int, present: Iterable[Array]) -> None:
        """Copy new tokens behind those of consecutive rows. The cache must be in host memory.

        Args:
            rows: The rows.
            past_lengths: How many tokens each row has.
            count: How many tokens each row gets.
            present: For each key or value of a layer an array [rows, kv_heads, count or more, head_dim].
        """
        for buffers, new in zip(self._buffers, present, strict=True):
            buffer = buffers[0].read()[rows]
            for row, length in enumerate(past_lengths):
                buffer[row, :, length : length + count] = new[row, :, :count]


class PresentOutputs:
    """Outputs `present.*` that hold the keys and values of new tokens only, in host memory.

    Args:
        architecture: The architecture of the base model.
        element_type: The type of keys and values in the graph.
    """

    def __init__(self, architecture: Architecture, element_type: ElementType):
        self._heads, self._head_dim = architecture.num_key_value_heads, architecture.head_dim
        self._element_type = element_type
        layers = range(architecture.num_hidden_layers)
        self._arrays: dict[str, Array] = {name: np.empty(0) for i in layers for name in present_names(i)}
        self._shape: tuple[int, ...] = ()

    def bind(self, binding: Any, rows: int, tokens: int) -> None:
        """Bind arrays for a run, unless arrays of that size are bound.

        Args:
            binding: An `onnxruntime.IOBinding`.
            rows: The rows of the run.
            tokens: The tokens per row, padding included.
        """
        shape = (rows, self._heads, tokens, self._head_dim)
        if shape == self._shape:
            return
        self._shape = shape
        for name in self._arrays:
            self._arrays[name] = np.empty(shape, self._element_type.storage)
            binding.bind_ortvalue_output(name, ort_value(self._arrays[name], self._element_type))

    def copy_to(self, cache: KVCache, rows: slice, past_lengths: Sequence[int], count: int) -> None:
        """Copy the new tokens into a cache.

        Args:
            cache: The cache.
            rows: The rows of the run.
            past_lengths: How many tokens each row has there.
            count: How many of the new tokens to copy. The others are padding.
        """
        cache.append(rows, past_lengths, count, self._arrays.values())


class _Buffer(Protocol):
    """The keys or values of one layer: zeros [rows, kv_heads, capacity, head_dim] to begin with."""

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        """Bind some rows as input `past`, and the same memory as output `present` unless that is None."""

    def read(self) -> Array:
        """The values, as numpy stores their type. They may be changed, and then written."""

    def write(self, values: Array) -> None:
        """Store the changed result of `read`."""


class _HostBuffer:
    """A numpy array."""

    def __init__(self, shape: tuple[int, ...], element_type: ElementType):
        self._array: Array = np.zeros(shape, element_type.storage)
        self._element_type = element_type

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        bound = ort_value(self._array[rows], self._element_type)
        binding.bind_ortvalue_input(past, bound)
        if present is not None:
            binding.bind_ortvalue_output(present, bound)

    def read(self) -> Array:
        return self._array

    def write(self, values: Array) -> None:
        """Do nothing: `read` gave the array itself."""


class _DeviceBuffer:
    """An OrtValue in the memory of a device. It goes through the host to be changed.

    Raises:
        MemoryError: The device has no room for it.
    """

    def __init__(self, shape: tuple[int, ...], element_type: ElementType, memory: DeviceMemory):
        self._shape, self._element_type, self._memory = shape, element_type, memory
        try:
            self._value = memory.zeros(shape, element_type.storage)
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise MemoryError(str(error)) from error

    def bind(self, binding: Any, rows: slice, past: str, present: str | None) -> None:
        """See `_Buffer`. Some of several rows are bound by address, which must stay valid while they are bound."""
        count = rows.stop - rows.start
        if count == self._shape[0] and self._element_type.in_numpy:
            binding.bind_ortvalue_input(past, self._value)
            if present is not None:
                binding.bind_ortvalue_output(present, self._value)
            return
        shape = (count, *self._shape[1:])
        size = prod(self._shape[1:]) * np.dtype(self._element_type.storage).itemsize
        address = self._value.data_ptr() + rows.start * size
        memory = self._memory
        where = (memory.device_type, memory.device_id, self._element_type.onnx_type, shape, address)
        binding.bind_input(past, *where)
        if present is not None:
            binding.bind_output(present, *where)

    def read(self) -> Array:
        return np.array(self._value.numpy())

    def write(self, values: Array) -> None:
        self._value.update_inplace(values)
