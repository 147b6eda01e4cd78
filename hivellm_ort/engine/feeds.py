"""The small arrays that change from run to run: tokens, positions, lengths, and what a run gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hivellm_ort.contract import GREEDY_OUTPUT, LOGITS
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.providers import import_onnxruntime

__all__ = ["Feeds"]


class Feeds:
    """Arrays of the host that are bound to an IOBinding; made and bound anew where their shape changes.

    Args:
        binding: of ONNX Runtime.
        capabilities: which of them the graph takes, and of what shape.
        vocab_size: of the model.
        greedy: whether runs give tokens in place of logits.
    """

    def __init__(self, binding: Any, capabilities: Capabilities, vocab_size: int, *, greedy: bool):
        self._binding, self._capabilities = binding, capabilities
        self._output = GREEDY_OUTPUT if greedy else LOGITS
        self._width: tuple[int, ...] = () if greedy else (vocab_size,)
        self._dtype: DTypeLike = np.int64 if greedy else np.float32
        self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        # On the CPU an OrtValue shares memory with its array: writing to the array is all an update takes.
        self._arrays: dict[str, NDArray[Any]] = {}
        self._wanted = (0, 0)

    def fill(
        self, token_ids: Sequence[Sequence[int]], begins: Sequence[int], wanted: int, width: int
    ) -> NDArray[Any]:
        """Make everything ready for a run.

        Args:
            token_ids: for every row the same number of tokens.
            begins: how many tokens each row has before.
            wanted: how many positions at the end of the tokens give logits, or a token.
            width: tokens of the run; what is above the tokens given is padding on the right.

        Returns:
            Where the logits will be, float32 [wanted, vocab_size], or the tokens, int64 [wanted].
        """
        rows, count = len(token_ids), len(token_ids[0])
        ids = self._array("input_ids", (rows, width), np.int64)
        if count < width:
            ids[:, count:] = 0  # any token would do
            ids = ids[:, :count]
        ids[...] = token_ids
        if self._capabilities.positions:
            positions = self._array("position_ids", (rows, width), np.int64)
            positions[...] = np.arange(width)
            positions += np.array(begins)[:, None]
        if self._capabilities.lengths:
            self._array("seqlens_k", (rows,), np.int32)[...] = [begin + count - 1 for begin in begins]
        if self._capabilities.total is not None:
            self._array("total_sequence_length", self._capabilities.total, np.int32)[...] = (
                max(begins) + width
            )
        last = (rows - 1) * width + count
        wanted_rows = self._array("logits_rows", (wanted,), np.int64)
        if (last, wanted) != self._wanted:  # from step to step they are the same
            wanted_rows[...] = np.arange(last - wanted, last)
            self._wanted = last, wanted
        if self._capabilities.memory is not None:
            # What a device needs was copied there when it was bound, not when the run begins.
            for name, array in self._arrays.items():
                if name != self._output:
                    self._binding.bind_ortvalue_input(name, self._value(array))
        return self._array(self._output, (wanted, *self._width), self._dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The array bound as input or output `name`; made and bound anew when its shape changes."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape:
            array = self._arrays[name] = np.empty(shape, dtype)
            if name == self._output:
                self._binding.bind_ortvalue_output(name, self._value(array))
            else:
                self._binding.bind_ortvalue_input(name, self._value(array))
        return array
