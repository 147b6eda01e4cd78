"""Rows of tokens on one session: append tokens to one row, or one token to every row (a decode step)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.adapters import AdapterBatch, BoundAdapter
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.forward_pass import ForwardPass, Scores
from hivellm_ort.engine.graph_capture import CapturedSteps
from hivellm_ort.engine.kv_cache import KVCache
from hivellm_ort.engine.prefix_cache import PrefixCache
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import ContextLengthError, InferenceError, InterruptedRunError

__all__ = ["Decoder"]

_CAPACITY_STEP = 256  # the capacity of a cache is a multiple of this many tokens
_MAX_IDLE_CAPACITY = 2048  # a larger cache is freed while there is nothing to do
# The most tokens of a run of a prompt. Attention on the CPU computes scores that it then masks. Short runs waste less
# of that, until matrix products become inefficient. A device is faster with long runs, and the number bounds the
# memory of activations.
_HOST_CHUNK, _DEVICE_CHUNK = 256, 1024
_MAX_ROW_PASSES = 4  # a swap back to one of the last adapters is then no work
_FEW_TOKENS = (
    8  # so many are read one by one behind a saved prefix; for more, one run of the whole prompt is faster
)


class Decoder:
    """Rows of tokens, each with a length and an adapter. Not safe to share between threads.

    A decoder has as many rows, and as much room, as were asked for since the last `free_rows`. GroupQueryAttention
    appends several tokens to one row only: `append` runs on one row of the cache. `step` runs on all rows together,
    one token each, or on one row after the other if the graph takes one row only. The next call overwrites logits.

    With `greedy`, the graph chooses the most likely token if it can, and only that is copied from a device. Of equal
    logits it takes the first. If logits have NaN or infinities, a graph may give any token, where a sampler refuses
    them. -1 stands for a number beyond the vocabulary.

    A run that fails or is ended leaves every row as long as it was. What it wrote is overwritten later. If a prompt
    is read in several runs, those that were complete count.

    Args:
        session: An `onnxruntime.InferenceSession`.
        config: The `decoder.json` of the base.
        capabilities: What its graphs allow.
        prefixes: The prefix cache of the base.
        watchdog: Ends runs that nobody waits for, except replayed ones. None means that no run is ended.

    Attributes:
        swap_seconds: The time that the last `start` took to bind its adapter. 0.0 if it was bound already.
        tokens_read: How many tokens forward passes have read so far: of prompts, of answers, and guesses.
    """

    def __init__(
        self,
        session: Any,
        config: DecoderConfig,
        capabilities: Capabilities,
        prefixes: PrefixCache,
        watchdog: Watchdog | None = None,
    ):
        self.swap_seconds = 0.0
        self.tokens_read = 0
        self._config, self._capabilities = config, capabilities
        self._prefixes, self._watchdog = prefixes, watchdog
        self._lengths: list[int] = []
        self._adapters: list[BoundAdapter | None] = []
        self._cache: KVCache | None = None
        self._session = session
        # The passes of single rows. The one that was used last is at the end.
        self._row_passes: dict[BoundAdapter | None, ForwardPass] = {}
        self._batch_pass = ForwardPass(session, config, capabilities, watchdog)
        self._captured_steps = (
            CapturedSteps(session, config, capabilities, capabilities.memory)
            if capabilities.graph_capture
            and capabilities.memory is not None
            and capabilities.batch
            and capabilities.past_present_share_buffer
            else None
        )
        self._adapter_batch: AdapterBatch | None = None
        self._batch_rows: tuple[BoundAdapter, ...] = ()

    @property
    def capacity(self) -> int:
        """How many tokens a row has room for before the cache grows."""
        return self._cache.capacity if self._cache else 0

    @property
    def rows(self) -> int:
        """How many rows there is room for before the cache grows."""
        return self._cache.rows if self._cache else 0

    @property
    def nbytes(self) -> int:
        """The bytes of keys and values."""
        return self._cache.nbytes if self._cache else 0

    def start(
        self, row: int, adapter: BoundAdapter | None, capacity: int, token_ids: Sequence[int] = ()
    ) -> int:
        """Start a row anew.

        Keys and values of the longest saved prefix of `token_ids` are copied, without its last two tokens. Quantised
        kernels compute one token a little differently from several, and the answer must not depend on what is saved.
        Nothing is copied if many tokens would be left to read one by one.

        Args:
            row: The row, at most one behind the rows started before.
            adapter: Its adapter. None means the base alone.
            capacity: How many tokens to have room for.
            token_ids: The prompt.

        Returns:
            How many tokens of the prompt were copied.

        Raises:
            ContextLengthError: The capacity exceeds the context of the model.
            OutOfMemoryError: The cache cannot grow, or the device has no room for the adapter.
        """
        if row == len(self._lengths):
            self._lengths.append(0)
            self._adapters.append(None)
        self._lengths[row], self._adapters[row] = 0, adapter
        begin, last = time.perf_counter(), next(reversed(self._row_passes), None)
        self._row_pass(adapter)
        self.swap_seconds = 0.0 if adapter is last else time.perf_counter() - begin
        try:
            self._reserve(capacity)
        except BaseException:
            if row >= self.rows:  # without room for it, it must not count as a row of the next pass
                del self._lengths[row:], self._adapters[row:]
            raise
        saved, length = self._prefixes.find(_digest(adapter), token_ids[:-2])
        one_by_one = not self._capabilities.multi_token_append and len(token_ids) - length > _FEW_TOKENS
        if saved is not None and self._cache is not None and not one_by_one:
            self._cache.load(row, saved.keys_values, length)
            self._lengths[row] = length
        return self._lengths[row]

    def append(
        self, row: int, token_ids: Sequence[int], logits_to_keep: int = 1, *, greedy: bool = False
    ) -> Scores:
        """Read tokens into one row.

        Args:
            row: The row.
            token_ids: The tokens.
            logits_to_keep: How many of the last tokens give logits.
            greedy: Whether the most likely tokens may replace logits.

        Returns:
            The logits after the last tokens, float32 [logits_to_keep, vocab]. With `greedy`, if the graph gives
            them, the most likely tokens, int64 [logits_to_keep].

        Raises:
            ContextLengthError: The row would exceed the context of the model.
            OutOfMemoryError: The cache cannot grow, or the pass cannot allocate memory.
            InterruptedRunError: The watchdog ended a run. Its attribute `read` says how many tokens were read.
            InferenceError: ONNX Runtime fails.
        """
        length, count = self._lengths[row], len(token_ids)
        self._reserve(length + count)
        row_pass = self._row_pass(self._adapters[row])
        if self._captured_steps is not None and row == 0 and count == 1 and length > 0:
            scores = self._captured_step(row_pass, token_ids, [length + 1], greedy=greedy)
            if scores is not None:
                self._lengths[0] = length + 1
                self.tokens_read += 1
                return scores
        try:
            return self._append(row_pass, row, token_ids, logits_to_keep, greedy=greedy)
        except InterruptedRunError as error:
            error.read = self._lengths[row] - length
            raise

    def _append(
        self,
        row_pass: ForwardPass,
        row: int,
        token_ids: Sequence[int],
        logits_to_keep: int,
        *,
        greedy: bool,
    ) -> Scores:
        length, count = self._lengths[row], len(token_ids)
        kept: list[Scores] = []
        row_pass.bind_rows(self._cache, slice(row, row + 1))
        max_chunk = _HOST_CHUNK if self._capabilities.memory is None else _DEVICE_CHUNK
        for chunk in self._capabilities.chunks(
            count, length=length, capacity=self.capacity, logits_to_keep=logits_to_keep, max_chunk=max_chunk
        ):
            if chunk.begin and self._watchdog is not None:
                self._watchdog.raise_if_cancelled()
            tokens = token_ids[chunk.begin : chunk.end]
            scores = row_pass.run(
                [tokens], [length + chunk.end], chunk.logits_to_keep, chunk.width, greedy=greedy
            )
            self._lengths[row] = length + chunk.end
            self.tokens_read += len(tokens)
            if count - logits_to_keep < chunk.end < count:
                kept.append(scores.copy())
        return np.concatenate([*kept, scores]) if kept else scores

    def forward(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens into the first row.

        Args:
            token_ids: The tokens.

        Returns:
            The logits after the last token, float32 [vocab].

        Raises:
            InferenceError: As for `append`.
        """
        logits: NDArray[np.float32] = self.append(0, token_ids)[0]
        return logits

    def step(self, token_ids: Sequence[int], *, greedy: bool = False) -> Scores:
        """Read one token into each of the first rows.

        Args:
            token_ids: One token per row.
            greedy: Whether the most likely tokens may replace logits.

        Returns:
            The logits, float32 [rows, vocab]. With `greedy`, if the graph gives them, the most likely tokens, int64
            [rows].

        Raises:
            InferenceError: As for `append`.
        """
        count = len(token_ids)
        self._reserve(max(self._lengths[:count]) + 1)
        if not self._capabilities.batch:
            before, rows = self._lengths[:], enumerate(token_ids)
            try:
                return np.concatenate(
                    [self.append(row, [token], greedy=greedy).copy() for row, token in rows]
                )
            except BaseException:
                self._lengths = before
                raise
        self._bind_adapters(self._adapters[:count])
        lengths = [length + 1 for length in self._lengths[:count]]
        scores = self._captured_step(self._batch_pass, token_ids, lengths, greedy=greedy)
        if scores is None:
            self._batch_pass.bind_rows(self._cache, slice(0, count))
            scores = self._batch_pass.run([[token] for token in token_ids], lengths, count, greedy=greedy)
        self._lengths[:count] = lengths
        self.tokens_read += count
        return scores

    def truncate(self, row: int, length: int) -> None:
        """Forget the last tokens of a row.

        Args:
            row: The row.
            length: How many tokens stay.
        """
        self._lengths[row] = length

    def move(self, source: int, target: int) -> None:
        """Copy a row over another row.

        Args:
            source: The row to copy from.
            target: The row to copy to.
        """
        if self._cache is not None:
            self._cache.move(source, target, self._lengths[source])
        self._lengths[target], self._adapters[target] = self._lengths[source], self._adapters[source]

    def save_prefix(self, row: int, token_ids: Sequence[int]) -> None:
        """Put what a row has read into the prefix cache.

        Args:
            row: The row.
            token_ids: The tokens of its request. The row may have read only the first of them.
        """
        cache = self._cache
        if cache is not None:
            size = cache.nbytes // (cache.rows * cache.capacity)
            known = token_ids[: self._lengths[row]]
            adapter = _digest(self._adapters[row])
            with contextlib.suppress(MemoryError):  # the answer is good without a saved prefix
                self._prefixes.add(adapter, known, lambda length: cache.save(row, length), size)

    def free_rows(self) -> None:
        """Free every row, and the memory that many or long rows took."""
        self._lengths.clear()
        self._adapters.clear()
        # A captured step belongs to one cache. It cannot be freed, and not be captured again without end.
        if self._captured_steps is None and (self.rows > 1 or self.capacity > _MAX_IDLE_CAPACITY):
            self._cache = None
            self._unbind()

    def release(self, adapter: BoundAdapter) -> None:
        """Let go of an adapter that no row has any more, so that its memory can be freed.

        Args:
            adapter: The adapter.
        """
        self._adapters = [None if one is adapter else one for one in self._adapters]
        batched = self._adapter_batch is not None and adapter in self._adapter_batch.adapters
        if batched or adapter in self._row_passes or adapter is self._batch_pass.adapter:
            self._unbind()

    def _captured_step(
        self, forward_pass: ForwardPass, token_ids: Sequence[int], lengths: Sequence[int], *, greedy: bool
    ) -> Scores | None:
        """Run a captured step of the first rows, with the adapter of a pass. None if there is no captured step."""
        if self._captured_steps is None or self._cache is None:
            return None
        greedy = greedy and self._capabilities.greedy_output
        inputs = forward_pass.adapter_inputs
        return self._captured_steps.run(self._cache, inputs, token_ids, lengths, greedy=greedy)

    def _row_pass(self, adapter: BoundAdapter | None) -> ForwardPass:
        """Get the pass of single rows with an adapter."""
        row_pass = self._row_passes.pop(adapter, None)
        row_pass = row_pass or ForwardPass(self._session, self._config, self._capabilities, self._watchdog)
        row_pass.bind_adapter(adapter)
        self._row_passes[adapter] = row_pass
        if len(self._row_passes) > _MAX_ROW_PASSES:
            del self._row_passes[next(iter(self._row_passes))]
        return row_pass

    def _unbind(self) -> None:
        self._row_passes.clear()
        self._batch_pass = ForwardPass(self._session, self._config, self._capabilities, self._watchdog)
        self._adapter_batch, self._batch_rows = None, ()

    def _bind_adapters(self, adapters: Sequence[BoundAdapter | None]) -> None:
        """Bind the adapters of the first rows to the batch pass."""
        first = adapters[0]
        if all(adapter is first for adapter in adapters):
            self._batch_pass.bind_adapter(first)
            self._batch_rows = ()
            return
        rows = tuple(adapter for adapter in adapters if adapter is not None)
        if len(rows) < len(adapters):
            raise InferenceError("rows with and without an adapter cannot step together: answer them apart")
        if rows == self._batch_rows:
            return
        # To join the weights takes milliseconds: a batch of adapters stays while it has all that are needed.
        if self._adapter_batch is None or not set(rows) <= set(self._adapter_batch.adapters):
            self._adapter_batch = AdapterBatch(tuple(dict.fromkeys(rows)), self._config)
        self._batch_pass.bind_adapter_inputs(self._adapter_batch.inputs_for(rows))
        self._batch_rows = rows

    def _reserve(self, tokens: int) -> None:
        """Make the cache large enough for all rows, and for so many tokens per row."""
        rows, capacity = max(self.rows, 1), self.capacity
        if tokens <= capacity and len(self._lengths) <= rows:
            return
        limit, fixed = self._config.architecture.max_position_embeddings, self._capabilities.max_length
        if tokens > limit:
            raise ContextLengthError(f"{tokens} tokens exceed the model's context of {limit}")
        if fixed is not None and tokens > fixed:
            why = f"have room for, of the model's context of {limit}: export it again with a larger --context"
            raise ContextLengthError(f"{tokens} tokens exceed the {fixed} that the base's graphs {why}")
        # Doubling keeps the copies of a long answer, and of many rows, linear.
        if tokens > capacity:
            needed = max(tokens, 2 * capacity if any(self._lengths) else 0)
            capacity = fixed or min(-(-needed // _CAPACITY_STEP) * _CAPACITY_STEP, limit)
        while rows < len(self._lengths):
            rows *= 2
        spec = self._capabilities.kv_cache_spec
        cache = KVCache(self._config.architecture, spec, rows=rows, capacity=capacity)
        if self._cache is not None:
            cache.copy_from(self._cache, self._lengths[: self._cache.rows])
        self._cache = cache
        if self._captured_steps is not None:
            self._captured_steps.clear()
        while len(self._row_passes) > 1:  # they hold the smaller cache; the last one is the next to run
            del self._row_passes[next(iter(self._row_passes))]


def _digest(adapter: BoundAdapter | None) -> str:
    return "" if adapter is None else adapter.digest
