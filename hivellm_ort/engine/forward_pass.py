"""One forward pass: an IOBinding, what is bound to it, and the run of the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hivellm_ort.contract import GREEDY_OUTPUT, LOGITS, DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter, bind_adapter_inputs
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.environment import import_onnxruntime
from hivellm_ort.engine.kv_cache import KVCache, PresentOutputs
from hivellm_ort.engine.ort_values import Tensor
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import InferenceError, InterruptedRunError, OutOfMemoryError

__all__ = ["NOT_CAPTURED", "ForwardPass", "Scores", "checked_tokens", "run_options", "run_session"]

Scores = NDArray[Any]
"""float32 [n, vocab], the logits of n positions. Or int64 [n], their most likely tokens."""

NOT_CAPTURED = -1
"""The graph id of a run that is neither captured nor replayed."""


class ForwardPass:
    """An IOBinding of the session, with an adapter, rows of a cache, and the inputs of a run.

    Args:
        session: An `onnxruntime.InferenceSession`.
        config: The `decoder.json` of the base.
        capabilities: What its graphs allow.
        watchdog: Ends runs that nobody waits for. None means that no run is ended.

    Attributes:
        adapter: The bound adapter. None if there is none, or several.
        adapter_inputs: Every bound adapter input by name.
    """

    def __init__(
        self, session: Any, config: DecoderConfig, capabilities: Capabilities, watchdog: Watchdog | None
    ):
        self.adapter: BoundAdapter | None = None
        self._session, self._watchdog = session, watchdog
        self._config, self._capabilities = config, capabilities
        self._binding = session.io_binding()
        # Held as long as they are bound: ONNX Runtime keeps the address of an array, not the array.
        self.adapter_inputs: Mapping[str, Tensor] = {}
        self._cache: KVCache | None = None
        self._rows = slice(0)
        self._options = run_options()
        self._bind_outputs(greedy=False)

    def bind_adapter(self, adapter: BoundAdapter | None) -> None:
        """Bind an adapter.

        Args:
            adapter: The adapter. None leaves what is bound, for a graph that takes none.

        Raises:
            OutOfMemoryError: The device has no room for it. What was bound stays bound.
        """
        if adapter is not None and adapter is not self.adapter:
            self.bind_adapter_inputs(adapter.inputs)
            self.adapter = adapter

    def bind_adapter_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Bind adapter inputs that are not those of one adapter.

        Args:
            inputs: Every adapter input by name.

        Raises:
            OutOfMemoryError: The device has no room for them. What was bound stays bound.
        """
        bind_adapter_inputs(self._binding, inputs, self.adapter_inputs, self._capabilities.memory)
        self.adapter_inputs, self.adapter = inputs, None

    def bind_rows(self, cache: KVCache | None, rows: slice) -> None:
        """Bind the keys and values of consecutive rows.

        Args:
            cache: The cache. None leaves what is bound.
            rows: The rows.
        """
        if cache is not None and (cache is not self._cache or rows != self._rows):
            self._cache, self._rows = cache, rows
            self._bind_cache()

    def run(
        self,
        token_ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        logits_to_keep: int,
        width: int = 1,
        *,
        greedy: bool,
    ) -> Scores:
        """Run the session.

        Args:
            token_ids: The same number of tokens for every row.
            lengths: The lengths of the rows, these tokens included.
            logits_to_keep: How many positions at the end give logits.
            width: The tokens per row of the run, padding on the right included.
            greedy: Whether the most likely tokens may replace logits, if the graph gives them.

        Returns:
            See `Scores`. The next run overwrites logits.

        Raises:
            InterruptedRunError: The watchdog ended the run.
            OutOfMemoryError: The run cannot allocate memory.
            InferenceError: The run fails otherwise.
        """
        greedy = greedy and self._capabilities.greedy_output
        if greedy is not self._greedy:
            # Every bound output is copied from the device: never bind both.
            self._binding.clear_binding_outputs()
            self._bind_outputs(greedy=greedy)
            self._bind_cache()
        count = len(token_ids[0])
        past_lengths = [length - count for length in lengths]
        scores = self._batch.fill(token_ids, past_lengths, logits_to_keep, width)
        if self._present is not None and self._cache is not None:
            self._present.bind(self._binding, len(past_lengths), width)
            if self._capabilities.memory is not None:  # bound is a copy from before the cache was changed
                self._bind_cache()
        size, position = (len(past_lengths), count), max(lengths)
        run_session(self._session, self._binding, self._options, self._watchdog, size=size, position=position)
        if self._present is not None and self._cache is not None:
            self._present.copy_to(self._cache, self._rows, past_lengths, count)
        if greedy:
            return checked_tokens(scores, self._config.architecture.vocab_size)
        return scores

    def _bind_outputs(self, *, greedy: bool) -> None:
        """Make runs give logits, or tokens. No output may be bound."""
        numbers, capabilities = self._config.architecture, self._capabilities
        self._greedy = greedy
        self._batch = _InputBatch(self._binding, capabilities, numbers.vocab_size, greedy=greedy)
        shared = capabilities.past_present_share_buffer
        self._present = None if shared else PresentOutputs(numbers, capabilities.cache_type)

    def _bind_cache(self) -> None:
        if self._cache is not None:
            self._cache.bind(self._binding, self._rows, present=self._present is None)


class _InputBatch:
    """The small arrays that change from run to run: tokens, positions, lengths, and the output.

    They are in host memory. An array is made and bound anew when its shape changes.

    Args:
        binding: An `onnxruntime.IOBinding`.
        capabilities: Which inputs the graph takes, and of what shape.
        vocab_size: The vocabulary size of the model.
        greedy: Whether runs give tokens in place of logits.
    """

    def __init__(self, binding: Any, capabilities: Capabilities, vocab_size: int, *, greedy: bool):
        self._binding, self._capabilities = binding, capabilities
        self._output = GREEDY_OUTPUT if greedy else LOGITS
        self._output_shape: tuple[int, ...] = () if greedy else (vocab_size,)
        self._output_dtype: DTypeLike = np.int64 if greedy else np.float32
        self._ort_value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        # On the CPU an OrtValue shares memory with its array: writing to the array updates the input.
        self._arrays: dict[str, NDArray[Any]] = {}
        self._logits_rows = (0, 0)

    def fill(
        self,
        token_ids: Sequence[Sequence[int]],
        past_lengths: Sequence[int],
        logits_to_keep: int,
        width: int,
    ) -> Scores:
        """Write the inputs of a run.

        Args:
            token_ids: The same number of tokens for every row.
            past_lengths: How many tokens each row has in the cache.
            logits_to_keep: How many positions at the end of the tokens give logits, or a token.
            width: The tokens per row of the run. What is above the given tokens is padding on the right.

        Returns:
            The array that will hold the logits, float32 [logits_to_keep, vocab_size], or the tokens, int64
            [logits_to_keep].
        """
        rows, count = len(token_ids), len(token_ids[0])
        ids = self._array("input_ids", (rows, width), np.int64)
        if count < width:
            ids[:, count:] = 0  # any token would do
            ids = ids[:, :count]
        ids[...] = token_ids
        if self._capabilities.position_ids:
            positions = self._array("position_ids", (rows, width), np.int64)
            positions[...] = np.arange(width)
            positions += np.array(past_lengths)[:, None]
        if self._capabilities.seqlens_k:
            lengths = self._array("seqlens_k", (rows,), np.int32)
            lengths[...] = [length + count - 1 for length in past_lengths]
        total_shape = self._capabilities.total_sequence_length
        if total_shape is not None:
            total = self._array("total_sequence_length", total_shape, np.int32)
            total[...] = max(past_lengths) + width
        end = (rows - 1) * width + count
        logits_rows = self._array("logits_rows", (logits_to_keep,), np.int64)
        if (end, logits_to_keep) != self._logits_rows:  # they are often the same from step to step
            logits_rows[...] = np.arange(end - logits_to_keep, end)
            self._logits_rows = end, logits_to_keep
        if self._capabilities.memory is not None:
            # ONNX Runtime copies inputs to a device when they are bound, not when the run begins.
            for name, array in self._arrays.items():
                if name != self._output:
                    self._binding.bind_ortvalue_input(name, self._ort_value(array))
        return self._array(self._output, (logits_to_keep, *self._output_shape), self._output_dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Get the array that is bound as input or output `name`."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape:
            array = self._arrays[name] = np.empty(shape, dtype)
            if name == self._output:
                self._binding.bind_ortvalue_output(name, self._ort_value(array))
            else:
                self._binding.bind_ortvalue_input(name, self._ort_value(array))
        return array


def run_options(graph_id: int = NOT_CAPTURED) -> Any:
    """Make the options of a run.

    Args:
        graph_id: The number of the captured graph, for a provider that captures and replays runs. Runs of one number
            differ only in the values of what is bound.

    Returns:
        The `onnxruntime.RunOptions`.
    """
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = 4  # what it would print is in the error that it raises
    # Also for the CPU: ONNX Runtime looks for the number in every run. If it is absent, that takes 40 us.
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def run_session(
    session: Any,
    binding: Any,
    options: Any,
    watchdog: Watchdog | None = None,
    *,
    size: tuple[int, int],
    position: int,
) -> None:
    """Run what is bound.

    Args:
        session: An `onnxruntime.InferenceSession`.
        binding: An `onnxruntime.IOBinding` of it.
        options: The `onnxruntime.RunOptions`.
        watchdog: Ends the run if nobody waits for it. None means that the run is not ended.
        size: Rows, and tokens per row. For error messages.
        position: The length of the longest row in tokens. For error messages.

    Raises:
        InterruptedRunError: The watchdog ended the run.
        OutOfMemoryError: The run cannot allocate memory.
        InferenceError: The run fails otherwise.
    """
    try:
        if watchdog is None:
            session.run_with_iobinding(binding, options)
        else:
            watchdog.run(session, binding, options)
    except InterruptedRunError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        kind = OutOfMemoryError if "allocat" in str(error) else InferenceError
        raise kind(
            f"the model failed on {size[0]} x {size[1]} tokens at position {position}: {error}"
        ) from error


def checked_tokens(token_ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """Replace numbers that are not tokens.

    CUDA's ArgMax has been seen to give 2147483647 if no logit is greater than all others.

    Args:
        token_ids: The tokens that a graph chose, int64 [n].
        vocab_size: The vocabulary size of the model.

    Returns:
        The tokens, int64 [n], with -1 in place of numbers beyond the vocabulary.
    """
    return np.where((token_ids < 0) | (token_ids >= vocab_size), np.int64(-1), token_ids)
