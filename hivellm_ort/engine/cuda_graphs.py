"""Steps that a device records once and then repeats as a whole: CUDA graphs.

What is recorded are addresses and shapes, so everything that such a step reads and writes stays where it is, and its
values are overwritten in place: tokens and lengths, the output, and the adapter's weights, which have slots of their
own. Prompts, and whatever else has several tokens a row, are not recorded.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import GREEDY_OUTPUT, LOGITS, DecoderConfig
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.device_arrays import Memory, Tensor
from hivellm_ort.engine.kv_cache import KVCache
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.engine.running import run_bound, run_options, tokens_of_vocabulary
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["CudaGraphSteps"]

_MOST = 64  # recordings: they stay in the device's memory as long as the session
# A session may have several decoders, one after the other, and must never repeat a recording of another.
_NUMBERS = itertools.count(1)

_Shapes = frozenset[tuple[str, tuple[int, ...]]]


class CudaGraphSteps:
    """Steps of one token per row, on the first rows of a cache.

    There is a recording for every number of rows, shapes of adapter weights, and output, on one cache. Adapters of
    the same shapes take turns in the same slots: to change costs a copy within the device.

    Args:
        session: of ONNX Runtime.
        config: the base bundle.
        capabilities: what its graphs can do where the session runs them.
        memory: of the device.
    """

    def __init__(self, session: Any, config: DecoderConfig, capabilities: Capabilities, memory: Memory):
        self._session, self._config, self._capabilities, self._memory = session, config, capabilities, memory
        self._recordings: dict[tuple[int, _Shapes, bool], _Recording] = {}
        self._slots: dict[_Shapes, _Slots] = {}
        self._left = _MOST

    def run(
        self,
        cache: KVCache,
        values: Mapping[str, Tensor],
        token_ids: Sequence[int],
        lengths: Sequence[int],
        *,
        greedy: bool,
    ) -> NDArray[Any] | None:
        """One step; float32 [rows, vocab] or, with `greedy`, int64 [rows]. None where there are too many recordings.

        Args:
            cache: whose first rows take the tokens; the same until `clear`.
            values: all adapter inputs.
            token_ids: one per row.
            lengths: of the rows, these tokens included.
            greedy: whether the graph chooses tokens.

        Raises:
            OutOfMemoryError: the device has no room.
            InferenceError: ONNX Runtime fails.
        """
        shapes = frozenset((name, value.array.shape) for name, value in values.items())
        key = len(token_ids), shapes, greedy
        recording = self._recordings.pop(key, None)  # one that fails is not to be repeated
        if recording is None:
            if not self._left:
                return None
            self._left -= 1
            recording = self._new(cache, values, shapes, len(token_ids), greedy=greedy)
        self._slots[shapes].hold(values)
        found = recording.run(token_ids, lengths)
        self._recordings[key] = recording
        return found

    def clear(self) -> None:
        """Forget what was recorded on a cache that is given up."""
        self._recordings.clear()
        self._slots.clear()

    def _new(
        self, cache: KVCache, values: Mapping[str, Tensor], shapes: _Shapes, rows: int, *, greedy: bool
    ) -> _Recording:
        try:
            if shapes not in self._slots:
                self._slots[shapes] = _Slots(values, self._memory)
            recording = _Recording(
                self._session, self._config, self._capabilities, self._memory, rows, greedy=greedy
            )
            recording.bind(cache, self._slots[shapes].values)
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise OutOfMemoryError(
                f"steps of {rows} rows cannot be put into the memory of {self._memory.device}:"
                f"{self._memory.number}: {error}"
            ) from error
        return recording


class _Slots:
    """Adapter inputs of certain shapes in a device's memory, for whichever adapter is to be used.

    Attributes:
        values: OrtValues by name, which stay where they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], memory: Memory):
        self._memory = memory
        make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self.values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            dtype = tensor.kind.storage if tensor.kind.in_numpy else tensor.kind.onnx_type
            self.values[name] = make(tensor.array.shape, dtype, memory.device, memory.number)
        # Weak, for an adapter that is forgotten shall be freed.
        self._held: dict[str, weakref.ref[Tensor]] = {}

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite what is not the same already."""
        for name, tensor in tensors.items():
            held = self._held.get(name)
            if held is None or held() is not tensor:
                self.values[name].update_inplace(tensor.value(self._memory))
                self._held[name] = weakref.ref(tensor)


class _Recording:
    """The steps of one number of rows: what is bound to them, and their number."""

    def __init__(
        self,
        session: Any,
        config: DecoderConfig,
        capabilities: Capabilities,
        memory: Memory,
        rows: int,
        *,
        greedy: bool,
    ):
        self._session, self._capabilities, self._rows = session, capabilities, rows
        self._vocab, self._greedy = config.architecture.vocab_size, greedy
        self._binding = session.io_binding()
        self._options = run_options(next(_NUMBERS))
        self._feeds = {"input_ids": memory.zeros((rows, 1), np.int64)}
        if capabilities.positions:
            self._feeds["position_ids"] = memory.zeros((rows, 1), np.int64)
        if capabilities.lengths:
            self._feeds["seqlens_k"] = memory.zeros((rows,), np.int32)
        self._wanted = memory.zeros((rows,), np.int64)
        self._wanted.update_inplace(np.arange(rows, dtype=np.int64))
        self._output = (
            memory.zeros((rows,), np.int64) if greedy else memory.zeros((rows, self._vocab), np.float32)
        )

    def bind(self, cache: KVCache, adapter: Mapping[str, Any]) -> None:
        """Bind everything, for good."""
        inputs = {**self._feeds, **adapter, "logits_rows": self._wanted}
        if self._capabilities.total is not None:
            # The one input that is read on the host, when the step is recorded: it must be true of all steps to
            # come. GroupQueryAttention takes the lengths from `seqlens_k`, and this as their bound.
            self._total = np.full(self._capabilities.total, cache.capacity, np.int32)
            inputs["total_sequence_length"] = import_onnxruntime().OrtValue.ortvalue_from_numpy(self._total)
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        cache.bind(self._binding, slice(0, self._rows))
        self._binding.bind_ortvalue_output(GREEDY_OUTPUT if self._greedy else LOGITS, self._output)

    def run(self, token_ids: Sequence[int], lengths: Sequence[int]) -> NDArray[Any]:
        """Overwrite tokens and lengths, record or repeat the step, and fetch what it gives."""
        begins = np.array(lengths) - 1
        for name, values in (("input_ids", token_ids), ("position_ids", begins), ("seqlens_k", begins)):
            if name in self._feeds:
                feed = self._feeds[name]
                dtype = np.int32 if name == "seqlens_k" else np.int64
                feed.update_inplace(np.array(values, dtype).reshape(feed.shape()))
        run_bound(self._session, self._binding, self._options, size=(self._rows, 1), position=max(lengths))
        found: NDArray[Any] = self._output.numpy()
        return tokens_of_vocabulary(found, self._vocab) if self._greedy else found
