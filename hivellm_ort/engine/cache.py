"""Key and value buffers, bound once as past and present."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import Architecture, past_names, present_names
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["KVCache"]


class KVCache:
    """Buffers float32 [batch, kv_heads, capacity, head_dim], a key and a value per layer.

    Raises:
        OutOfMemoryError: the buffers cannot be allocated; the message gives their size.
    """

    def __init__(self, architecture: Architecture, *, batch: int, capacity: int):
        shape = (batch, architecture.num_key_value_heads, capacity, architecture.head_dim)
        self.capacity = capacity
        layers = range(architecture.num_hidden_layers)
        try:
            self._buffers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = [
                (np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in layers
            ]
        except MemoryError as error:
            size = 2 * len(layers) * int(np.prod(shape)) * 4
            raise OutOfMemoryError(
                f"a cache for {capacity} tokens needs {size >> 20} MiB, which cannot be allocated: "
                "shorten the prompt or lower max_tokens"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(key.nbytes + value.nbytes for key, value in self._buffers)

    def copy_from(self, other: KVCache, length: int) -> None:
        """Take over the first `length` positions of a smaller cache."""
        for mine, theirs in zip(self._buffers, other._buffers, strict=True):
            for new, old in zip(mine, theirs, strict=True):
                new[:, :, :length] = old[:, :, :length]

    def bind(self, binding: Any) -> None:
        """Bind every buffer as past and as present of an ONNX Runtime IOBinding."""
        ort = import_onnxruntime()
        for layer, pair in enumerate(self._buffers):
            for past, present, buffer in zip(past_names(layer), present_names(layer), pair, strict=True):
                value = ort.OrtValue.ortvalue_from_numpy(buffer)
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
