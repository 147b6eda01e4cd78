"""Key and value buffers of several rows, bound once as past and present."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import Architecture, past_names, present_names
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["KVCache"]

Array = NDArray[np.float32]


class KVCache:
    """Buffers float32 [rows, kv_heads, capacity, head_dim], a key and a value per layer.

    Raises:
        OutOfMemoryError: the buffers cannot be allocated; the message gives their size.
    """

    def __init__(self, architecture: Architecture, *, rows: int, capacity: int):
        shape = (rows, architecture.num_key_value_heads, capacity, architecture.head_dim)
        self.rows, self.capacity = rows, capacity
        layers = range(architecture.num_hidden_layers)
        try:
            self._buffers = [np.zeros(shape, np.float32) for _ in layers for _ in ("key", "value")]
        except MemoryError as error:
            size = 2 * len(layers) * int(np.prod(shape)) * 4
            tokens = f"{rows} x {capacity}" if rows > 1 else f"{capacity}"
            raise OutOfMemoryError(
                f"a cache for {tokens} tokens needs {size >> 20} MiB, which cannot be allocated: "
                "shorten the prompt, lower max_tokens, or take fewer rows at a time"
            ) from error
        self._past = [name for layer in layers for name in past_names(layer)]
        self._present = [name for layer in layers for name in present_names(layer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def bind(self, binding: Any, rows: slice) -> None:
        """Bind a run of rows as past and as present of an ONNX Runtime IOBinding."""
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        for past, present, buffer in zip(self._past, self._present, self._buffers, strict=True):
            bound = value(buffer[rows])
            binding.bind_ortvalue_input(past, bound)
            binding.bind_ortvalue_output(present, bound)

    def copy_from(self, other: KVCache, lengths: Sequence[int]) -> None:
        """Take over the first positions of every row of a smaller cache."""
        for new, old in zip(self._buffers, other._buffers, strict=True):
            for row, length in enumerate(lengths):
                new[row, :, :length] = old[row, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over another row."""
        for buffer in self._buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def save(self, row: int, length: int) -> Array:
        """The first `length` positions of a row, copied: float32 [2 * layers, kv_heads, length, head_dim]."""
        _, heads, _, width = self._buffers[0].shape
        shape = (len(self._buffers), heads, length, width)
        # Pages of its own: blocks of many sizes that come and go would leave holes in the heap.
        pages = mmap.mmap(-1, 4 * int(np.prod(shape)))
        saved = np.frombuffer(pages, np.float32).reshape(shape)
        for place, buffer in zip(saved, self._buffers, strict=True):
            place[...] = buffer[row, :, :length]
        return saved

    def load(self, row: int, saved: Array, length: int) -> None:
        """Put the first `length` positions of what `save` gave into a row."""
        for place, buffer in zip(saved, self._buffers, strict=True):
            buffer[row, :, :length] = place[:, :length]
