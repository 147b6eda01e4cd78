"""Keys and values of several rows: the cache that a graph reads, and what it gives of new tokens."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hivellm_ort.contract import Architecture, past_names, present_names
from hivellm_ort.engine.blocks import Block, DeviceBlock, HostBlock
from hivellm_ort.engine.device_arrays import FLOAT_TYPES, Array, ElementType, Memory, host_value
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["CacheForm", "KVCache", "NewTokens"]


@dataclass(frozen=True)
class CacheForm:
    """What the buffers of a cache are.

    Attributes:
        kind: type of the graph's caches.
        memory: of a device that keeps them; None for the host.
        together: whether a run may have several rows, whose buffers must then lie one behind the other. Else each
            row of a device has buffers of its own, since not every device tells addresses.
    """

    kind: ElementType = FLOAT_TYPES["float32"]
    memory: Memory | None = None
    together: bool = True


_PLAIN = CacheForm()


class KVCache:
    """Buffers [rows, kv_heads, capacity, head_dim] of zeros, a key and a value per layer.

    Args:
        architecture: of the base model.
        form: type and place of the buffers; float32 in the host's memory by default.
        rows: how many rows.
        capacity: tokens per row.

    Raises:
        OutOfMemoryError: the buffers cannot be allocated; the message gives their size.
    """

    def __init__(self, architecture: Architecture, form: CacheForm = _PLAIN, *, rows: int, capacity: int):
        kind, memory = form.kind, form.memory
        self.rows, self.capacity = rows, capacity
        self._kind = kind
        self._shape = (architecture.num_key_value_heads, capacity, architecture.head_dim)
        layers = range(architecture.num_hidden_layers)
        self._past = [name for layer in layers for name in past_names(layer)]
        self._present = [name for layer in layers for name in present_names(layer)]
        # Rows per block, and per key or value the blocks that have all rows.
        self._depth = rows if form.together or memory is None else 1
        shape = (self._depth, *self._shape)
        try:
            self._blocks: list[list[Block]] = [
                [
                    HostBlock(shape, kind) if memory is None else DeviceBlock(shape, kind, memory)
                    for _ in range(rows // self._depth)
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
        """Bytes of all buffers."""
        item = np.dtype(self._kind.storage).itemsize
        return len(self._past) * self.rows * int(np.prod(self._shape, dtype=np.int64)) * item

    def bind(self, binding: Any, rows: slice, *, in_place: bool = True) -> None:
        """Bind a run of rows as past of an ONNX Runtime IOBinding and, if `in_place`, as present too."""
        number, begin = divmod(rows.start, self._depth)
        part = slice(begin, begin + rows.stop - rows.start)
        for past, present, blocks in zip(self._past, self._present, self._blocks, strict=True):
            blocks[number].bind(binding, part, past, present if in_place else None)

    def copy_from(self, other: KVCache, lengths: Sequence[int]) -> None:
        """Take over the first positions of every row of a smaller cache."""
        for news, olds in zip(self._blocks, other._blocks, strict=True):
            for number, old_block in enumerate(olds):
                new, old = news[number].read(), old_block.read()
                begin = number * other._depth
                for row, length in enumerate(lengths[begin : begin + other._depth]):
                    new[row, :, :length] = old[row, :, :length]
                news[number].write(new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over another row."""
        from_block, from_row = divmod(source, self._depth)
        to_block, to_row = divmod(target, self._depth)
        for blocks in self._blocks:
            new, old = blocks[to_block].read(), blocks[from_block].read()
            new[to_row, :, :length] = old[from_row, :, :length]
            blocks[to_block].write(new)

    def save(self, row: int, length: int) -> Array:
        """The first `length` positions of a row, copied: [2 * layers, kv_heads, length, head_dim]."""
        heads, _, width = self._shape
        shape = (len(self._blocks), heads, length, width)
        # Pages of its own: blocks of many sizes that come and go would leave holes in the heap.
        storage = np.dtype(self._kind.storage)
        pages = mmap.mmap(-1, storage.itemsize * int(np.prod(shape)))
        saved: Array = np.frombuffer(pages, storage).reshape(shape)
        number, place = divmod(row, self._depth)
        for kept, blocks in zip(saved, self._blocks, strict=True):
            kept[...] = blocks[number].read()[place, :, :length]
        return saved

    def load(self, row: int, saved: Array, length: int) -> None:
        """Put the first `length` positions of what `save` gave into a row."""
        number, place = divmod(row, self._depth)
        for kept, blocks in zip(saved, self._blocks, strict=True):
            buffer = blocks[number].read()
            buffer[place, :, :length] = kept[:, :length]
            blocks[number].write(buffer)

    def add(self, rows: slice, begins: Sequence[int], count: int, fresh: Iterator[Array]) -> None:
        """Put new positions behind those of a run of rows, in a cache of the host.

        Args:
            rows: the rows.
            begins: how many positions each has.
            count: how many each gets.
            fresh: per key or value [rows, kv_heads, count or more, head_dim].
        """
        for blocks, new in zip(self._blocks, fresh, strict=True):
            buffer = blocks[0].read()[rows]
            for row, begin in enumerate(begins):
                buffer[row, :, begin : begin + count] = new[row, :, :count]


class NewTokens:
    """Outputs for the keys and values of a run's own tokens, in the host's memory.

    Args:
        architecture: of the base model.
        kind: float type of the graph's caches.
    """

    def __init__(self, architecture: Architecture, kind: ElementType):
        self._heads, self._width = architecture.num_key_value_heads, architecture.head_dim
        self._kind = kind
        layers = range(architecture.num_hidden_layers)
        self._arrays: dict[str, Array] = {name: np.empty(0) for i in layers for name in present_names(i)}
        self._shape: tuple[int, ...] = ()

    def bind(self, binding: Any, rows: int, tokens: int) -> None:
        """Bind arrays for so many rows and tokens as present, unless they are bound."""
        shape = (rows, self._heads, tokens, self._width)
        if shape == self._shape:
            return
        self._shape = shape
        for name in self._arrays:
            self._arrays[name] = np.empty(shape, self._kind.storage)
            binding.bind_ortvalue_output(name, host_value(self._arrays[name], self._kind))

    def add_to(self, cache: KVCache, rows: slice, begins: Sequence[int], count: int) -> None:
        """Copy the first `count` new positions into a cache, behind the `begins` positions of each row."""
        cache.add(rows, begins, count, iter(self._arrays.values()))
