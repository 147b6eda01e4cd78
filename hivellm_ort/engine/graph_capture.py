"""Decode steps that a device captures once and then replays as a whole: CUDA graphs.

A captured graph holds addresses and shapes. So everything that a step reads and writes stays where it is, and only
its values change: tokens and lengths, the output, and the adapter weights, which are copied into static inputs.
Prompts, and all other runs with several tokens per row, are not captured.
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
from hivellm_ort.engine.environment import import_onnxruntime
from hivellm_ort.engine.forward_pass import Scores, checked_tokens, run_options, run_session
from hivellm_ort.engine.kv_cache import KVCache
from hivellm_ort.engine.ort_values import DeviceMemory, Tensor
from hivellm_ort.errors import OutOfMemoryError

__all__ = ["CapturedSteps"]

_MAX_GRAPHS = 64  # they stay in the memory of the device as long as the session
# A session may have several decoders, one after the other. One must never replay the graph of another.
_GRAPH_IDS = itertools.count(1)

_Shapes = frozenset[tuple[str, tuple[int, ...]]]


class CapturedSteps:
    """Decode steps of one token per row, on the first rows of a cache.

    There is a captured graph for each number of rows, set of adapter shapes, and output, on one cache. Adapters of
    the same shapes take turns in the same static inputs: a swap is a copy within the device.

    Args:
        session: An `onnxruntime.InferenceSession`.
        config: The `decoder.json` of the base.
        capabilities: What its graphs allow.
        memory: The memory of the device.
    """

    def __init__(self, session: Any, config: DecoderConfig, capabilities: Capabilities, memory: DeviceMemory):
        self._session, self._memory = session, memory
        self._config, self._capabilities = config, capabilities
        self._graphs: dict[tuple[int, _Shapes, bool], _CapturedStep] = {}
        self._static_inputs: dict[_Shapes, _StaticInputs] = {}
        self._left = _MAX_GRAPHS

    def run(
        self,
        cache: KVCache,
        adapter_inputs: Mapping[str, Tensor],
        token_ids: Sequence[int],
        lengths: Sequence[int],
        *,
        greedy: bool,
    ) -> Scores | None:
        """Run one step. The first of its kind is captured, later ones are replayed.

        Args:
            cache: The cache. It must be the same until `clear`.
            adapter_inputs: Every adapter input by name.
            token_ids: One token per row.
            lengths: The lengths of the rows, these tokens included.
            greedy: Whether the graph chooses tokens.

        Returns:
            The logits, float32 [rows, vocab]. With `greedy` the tokens, int64 [rows]. None if there are too many
            captured graphs.

        Raises:
            OutOfMemoryError: The device has no room.
            InferenceError: ONNX Runtime fails.
        """
        shapes = frozenset((name, value.array.shape) for name, value in adapter_inputs.items())
        key = len(token_ids), shapes, greedy
        step = self._graphs.pop(key, None)  # one that fails must not be replayed
        if step is None:
            if not self._left:
                return None
            self._left -= 1
            step = self._new(cache, adapter_inputs, shapes, len(token_ids), greedy=greedy)
        self._static_inputs[shapes].load(adapter_inputs)
        scores = step.run(token_ids, lengths)
        self._graphs[key] = step
        return scores

    def clear(self) -> None:
        """Forget what was captured on a cache that is given up."""
        self._graphs.clear()
        self._static_inputs.clear()

    def _new(
        self,
        cache: KVCache,
        adapter_inputs: Mapping[str, Tensor],
        shapes: _Shapes,
        rows: int,
        *,
        greedy: bool,
    ) -> _CapturedStep:
        try:
            if shapes not in self._static_inputs:
                self._static_inputs[shapes] = _StaticInputs(adapter_inputs, self._memory)
            step = _CapturedStep(
                self._session, self._config, self._capabilities, self._memory, rows, greedy=greedy
            )
            step.bind(cache, self._static_inputs[shapes].values)
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise OutOfMemoryError(
                f"steps of {rows} rows cannot be put into the memory of {self._memory.device_type}:"
                f"{self._memory.device_id}: {error}"
            ) from error
        return step


class _StaticInputs:
    """Adapter inputs of certain shapes in the memory of a device, for one adapter after the other.

    Attributes:
        values: OrtValues by name. They stay where they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], memory: DeviceMemory):
        self._memory = memory
        make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self.values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            element_type = tensor.element_type
            dtype = element_type.storage if element_type.in_numpy else element_type.onnx_type
            self.values[name] = make(tensor.array.shape, dtype, memory.device_type, memory.device_id)
        # Weak references: an adapter that is released must be freed.
        self._loaded: dict[str, weakref.ref[Tensor]] = {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors that are not there already."""
        for name, tensor in tensors.items():
            loaded = self._loaded.get(name)
            if loaded is None or loaded() is not tensor:
                self.values[name].update_inplace(tensor.ort_value(self._memory))
                self._loaded[name] = weakref.ref(tensor)


class _CapturedStep:
    """The steps of one number of rows: an IOBinding, and the number of the captured graph."""

    def __init__(
        self,
        session: Any,
        config: DecoderConfig,
        capabilities: Capabilities,
        memory: DeviceMemory,
        rows: int,
        *,
        greedy: bool,
    ):
        self._session, self._capabilities, self._rows = session, capabilities, rows
        self._vocab_size, self._greedy = config.architecture.vocab_size, greedy
        self._binding = session.io_binding()
        self._options = run_options(next(_GRAPH_IDS))
        self._inputs = {"input_ids": memory.zeros((rows, 1), np.int64)}
        if capabilities.position_ids:
            self._inputs["position_ids"] = memory.zeros((rows, 1), np.int64)
        if capabilities.seqlens_k:
            self._inputs["seqlens_k"] = memory.zeros((rows,), np.int32)
        self._logits_rows = memory.zeros((rows,), np.int64)
        self._logits_rows.update_inplace(np.arange(rows, dtype=np.int64))
        self._output = (
            memory.zeros((rows,), np.int64) if greedy else memory.zeros((rows, self._vocab_size), np.float32)
        )

    def bind(self, cache: KVCache, adapter_inputs: Mapping[str, Any]) -> None:
        """Bind everything, once."""
        inputs = {**self._inputs, **adapter_inputs, "logits_rows": self._logits_rows}
        total_shape = self._capabilities.total_sequence_length
        if total_shape is not None:
            # The only input that is read on the host, when the step is captured: it must hold for all later steps.
            # GroupQueryAttention takes the lengths from `seqlens_k`, and this one as their bound.
            self._total = np.full(total_shape, cache.capacity, np.int32)
            inputs["total_sequence_length"] = import_onnxruntime().OrtValue.ortvalue_from_numpy(self._total)
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        cache.bind(self._binding, slice(0, self._rows))
        self._binding.bind_ortvalue_output(GREEDY_OUTPUT if self._greedy else LOGITS, self._output)

    def run(self, token_ids: Sequence[int], lengths: Sequence[int]) -> Scores:
        """Overwrite tokens and lengths, run, and fetch the output."""
        past_lengths = np.array(lengths) - 1
        for name, values in (
            ("input_ids", token_ids),
            ("position_ids", past_lengths),
            ("seqlens_k", past_lengths),
        ):
            if name in self._inputs:
                value = self._inputs[name]
                dtype = np.int32 if name == "seqlens_k" else np.int64
                value.update_inplace(np.array(values, dtype).reshape(value.shape()))
        run_session(self._session, self._binding, self._options, size=(self._rows, 1), position=max(lengths))
        scores: NDArray[Any] = self._output.numpy()
        return checked_tokens(scores, self._vocab_size) if self._greedy else scores
