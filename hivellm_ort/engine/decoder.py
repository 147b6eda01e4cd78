"""Rows of generation on one session: appending to one of them, and stepping all at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter, bind_values
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.cuda_graphs import CudaGraphSteps
from hivellm_ort.engine.device_arrays import Tensor
from hivellm_ort.engine.feeds import Feeds
from hivellm_ort.engine.kv_cache import KVCache, NewTokens
from hivellm_ort.engine.mixed import MixedAdapters
from hivellm_ort.engine.pieces import pieces
from hivellm_ort.engine.prefixes import PrefixCache
from hivellm_ort.engine.running import run_bound, run_options, tokens_of_vocabulary
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import ContextLengthError, InferenceError, InterruptedRunError

__all__ = ["Decoder"]

_GROWTH = 256  # cache capacities are multiples of this many tokens
_KEPT_CAPACITY = 2048  # a larger cache is not kept while there is nothing to do
# Tokens per forward pass of a prompt. Attention on the CPU computes what it then masks: the fewer, the less of that,
# down to where products lose by it. A device wants many; the number bounds the activations' memory.
_HOST_CHUNK, _DEVICE_CHUNK = 256, 1024
_KEPT_BINDINGS = 4  # to change back to one of the last adapters is then no work
_FEW_TOKENS = 8  # are read one by one behind a kept prefix; more of them sooner in one run from the start

Scores = NDArray[Any]
"""float32 [n, vocab], the logits of n positions; or int64 [n], their most likely tokens."""


class Decoder:
    """Rows of generation, each with a length and an adapter. Not safe to share between threads.

    There are as many rows, and room for as many tokens, as were asked for since the last `rest`. GroupQueryAttention
    appends several tokens to one row only: `append` runs on a view of that row's cache, `step` on all rows together,
    one token each, or one after the other where a run has one row. Logits are overwritten by the next call.

    Where nothing but the most likely token is wanted, `greedy`, and the graph gives it, only that is copied from a
    device: of each position the first of the greatest logits. Of logits with NaN or infinities, which a sampler
    refuses, a graph may give any token; -1 stands for what is none of the vocabulary.

    A run that fails or is ended leaves every row as long as it was; what it wrote behind that is overwritten. Of a
    prompt that is read in several runs those that had ended count.

    Args:
        session: of ONNX Runtime.
        config: the base bundle.
        capabilities: what its graphs can do where the session runs them.
        prefixes: what is kept of earlier rows.
        watchdog: who may end runs, but for those that a device repeats from a recording; None for nobody.

    Attributes:
        swap_seconds: time that the last `start` took to change to its adapter; 0.0 where it was that of the last run.
        tokens_read: tokens that forward passes have read so far: of prompts, of answers, and guesses.
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
        # Of single rows; the one that was used last is at the end.
        self._row_passes: dict[BoundAdapter | None, _Pass] = {}
        self._batch_pass = _Pass(session, config, capabilities, watchdog)
        self._cuda_graphs = (
            CudaGraphSteps(session, config, capabilities, capabilities.memory)
            if capabilities.cuda_graph
            and capabilities.memory is not None
            and capabilities.batch
            and not capabilities.new_tokens
            else None
        )
        self._mixed: MixedAdapters | None = None
        self._mixed_rows: tuple[BoundAdapter, ...] = ()

    @property
    def capacity(self) -> int:
        """Tokens a row has room for before the cache grows."""
        return self._cache.capacity if self._cache else 0

    @property
    def rows(self) -> int:
        """How many rows there is room for."""
        return self._cache.rows if self._cache else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self._cache.nbytes if self._cache else 0

    def start(
        self, row: int, adapter: BoundAdapter | None, capacity: int, token_ids: Sequence[int] = ()
    ) -> int:
        """Begin a row anew.

        Args:
            row: the row; at most one after the rows begun before.
            adapter: its adapter; None for the base alone.
            capacity: tokens to have room for.
            token_ids: what it is going to read; as many of them as another request has read are taken over, but
                not the last two: quantised kernels compute one token a little differently from several, and the
                answer must not depend on what is kept. None where many would be left to read one by one.

        Returns:
            How many tokens were taken over.
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
        many = not self._capabilities.append and len(token_ids) - length > _FEW_TOKENS
        if saved is not None and self._cache is not None and not many:
            self._cache.load(row, saved.block, length)
            self._lengths[row] = length
        return self._lengths[row]

    def append(self, row: int, token_ids: Sequence[int], wanted: int = 1, *, greedy: bool = False) -> Scores:
        """Read tokens into one row; float32 [wanted, vocab], the logits after the last `wanted` of them.

        With `greedy`, where the graph gives them, the most likely tokens in place of logits: int64 [wanted].

        Raises:
            ContextLengthError: the row would exceed the model's context.
            OutOfMemoryError: the cache cannot grow, or the pass cannot allocate.
            InterruptedRunError: it was ended; the row has what its attribute `read` says.
            InferenceError: ONNX Runtime fails.
        """
        length, count = self._lengths[row], len(token_ids)
        self._reserve(length + count)
        one = self._row_pass(self._adapters[row])
        if self._cuda_graphs is not None and row == 0 and count == 1 and length > 0:
            repeated = self._repeated(one, token_ids, [length + 1], greedy=greedy)
            if repeated is not None:
                self._lengths[0] = length + 1
                self.tokens_read += 1
                return repeated
        try:
            return self._append(one, row, token_ids, wanted, greedy=greedy)
        except InterruptedRunError as error:
            error.read = self._lengths[row] - length
            raise

    def _append(self, one: _Pass, row: int, token_ids: Sequence[int], wanted: int, *, greedy: bool) -> Scores:
        length, count = self._lengths[row], len(token_ids)
        found: list[Scores] = []
        one.use_rows(self._cache, slice(row, row + 1))
        longest = _HOST_CHUNK if self._capabilities.memory is None else _DEVICE_CHUNK
        sizes = {"length": length, "capacity": self.capacity, "wanted": wanted, "longest": longest}
        for piece in pieces(self._capabilities, count, **sizes):
            if piece.begin and self._watchdog is not None:
                self._watchdog.require_wanted()
            tokens = token_ids[piece.begin : piece.end]
            scores = one.run([tokens], [length + piece.end], piece.wanted, piece.width, greedy=greedy)
            self._lengths[row] = length + piece.end
            self.tokens_read += len(tokens)
            if count - wanted < piece.end < count:
                found.append(scores.copy())
        return np.concatenate([*found, scores]) if found else scores

    def forward(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens into the first row; float32 [vocab], the logits after the last."""
        logits: NDArray[np.float32] = self.append(0, token_ids)[0]
        return logits

    def step(self, token_ids: Sequence[int], *, greedy: bool = False) -> Scores:
        """Read one token into each of the first rows; float32 [len(token_ids), vocab].

        With `greedy` int64 [len(token_ids)], and raises, as `append`.
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
        self._use_adapters(self._adapters[:count])
        lengths = [length + 1 for length in self._lengths[:count]]
        scores = self._repeated(self._batch_pass, token_ids, lengths, greedy=greedy)
        if scores is None:
            self._batch_pass.use_rows(self._cache, slice(0, count))
            scores = self._batch_pass.run([[token] for token in token_ids], lengths, count, greedy=greedy)
        self._lengths[:count] = lengths
        self.tokens_read += count
        return scores

    def truncate(self, row: int, length: int) -> None:
        """Forget the last tokens of a row."""
        self._lengths[row] = length

    def move(self, source: int, target: int) -> None:
        """Put a row in the place of another."""
        if self._cache is not None:
            self._cache.move(source, target, self._lengths[source])
        self._lengths[target], self._adapters[target] = self._lengths[source], self._adapters[source]

    def keep(self, row: int, token_ids: Sequence[int]) -> None:
        """Offer what a row has read, the first of `token_ids`, to requests that begin alike."""
        cache = self._cache
        if cache is not None:
            size = cache.nbytes // (cache.rows * cache.capacity)
            known = token_ids[: self._lengths[row]]
            adapter = _digest(self._adapters[row])
            with contextlib.suppress(MemoryError):  # an answer is not worth less for not being kept
                self._prefixes.add(adapter, known, lambda length: cache.save(row, length), size)

    def rest(self) -> None:
        """Every row is free: give back the memory that many or long rows took."""
        self._lengths.clear()
        self._adapters.clear()
        # What is recorded is of one cache, and can be neither freed nor recorded again without end.
        if self._cuda_graphs is None and (self.rows > 1 or self.capacity > _KEPT_CAPACITY):
            self._cache = None
            self._unbind()

    def release(self, adapter: BoundAdapter) -> None:
        """Let go of an adapter that no row has any more, so that its memory can be freed."""
        self._adapters = [None if one is adapter else one for one in self._adapters]
        mixed = self._mixed is not None and adapter in self._mixed.adapters
        if mixed or adapter in self._row_passes or adapter is self._batch_pass.adapter:
            self._unbind()

    def _repeated(
        self, one: _Pass, token_ids: Sequence[int], lengths: Sequence[int], *, greedy: bool
    ) -> Scores | None:
        """A step of the first rows by the device's recording, with the adapter of a pass; None where it has none."""
        if self._cuda_graphs is None or self._cache is None:
            return None
        greedy = greedy and self._capabilities.greedy
        return self._cuda_graphs.run(self._cache, one.values, token_ids, lengths, greedy=greedy)

    def _row_pass(self, adapter: BoundAdapter | None) -> _Pass:
        """The binding of single rows with an adapter."""
        one = self._row_passes.pop(adapter, None)
        one = one or _Pass(self._session, self._config, self._capabilities, self._watchdog)
        one.use_adapter(adapter)
        self._row_passes[adapter] = one
        if len(self._row_passes) > _KEPT_BINDINGS:
            del self._row_passes[next(iter(self._row_passes))]
        return one

    def _unbind(self) -> None:
        self._row_passes.clear()
        self._batch_pass = _Pass(self._session, self._config, self._capabilities, self._watchdog)
        self._mixed, self._mixed_rows = None, ()

    def _use_adapters(self, adapters: Sequence[BoundAdapter | None]) -> None:
        first = adapters[0]
        if all(adapter is first for adapter in adapters):
            self._batch_pass.use_adapter(first)
            self._mixed_rows = ()
            return
        rows = tuple(adapter for adapter in adapters if adapter is not None)
        if len(rows) < len(adapters):
            raise InferenceError("rows with and without an adapter cannot step together: answer them apart")
        if rows == self._mixed_rows:
            return
        # Joining the weights takes milliseconds: what is joined stays while it has all that is needed.
        if self._mixed is None or not set(rows) <= set(self._mixed.adapters):
            self._mixed = MixedAdapters(tuple(dict.fromkeys(rows)), self._config)
        self._batch_pass.use_values(self._mixed.values_for(rows))
        self._mixed_rows = rows

    def _reserve(self, tokens: int) -> None:
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
            wanted = max(tokens, 2 * capacity if any(self._lengths) else 0)
            capacity = fixed or min(-(-wanted // _GROWTH) * _GROWTH, limit)
        while rows < len(self._lengths):
            rows *= 2
        cache = KVCache(self._config.architecture, self._capabilities.cache, rows=rows, capacity=capacity)
        if self._cache is not None:
            cache.copy_from(self._cache, self._lengths[: self._cache.rows])
        self._cache = cache
        if self._cuda_graphs is not None:
            self._cuda_graphs.clear()
        while len(self._row_passes) > 1:  # they hold the smaller cache; the last one is the next to run
            del self._row_passes[next(iter(self._row_passes))]


class _Pass:
    """An IOBinding, and what is bound to it."""

    def __init__(
        self, session: Any, config: DecoderConfig, capabilities: Capabilities, watchdog: Watchdog | None
    ):
        self.adapter: BoundAdapter | None = None
        self._session, self._config, self._capabilities, self._watchdog = (
            session,
            config,
            capabilities,
            watchdog,
        )
        self._binding = session.io_binding()
        # Held as long as it is bound: ONNX Runtime keeps the address of an array, not the array.
        self.values: Mapping[str, Tensor] = {}
        self._cache: KVCache | None = None
        self._rows = slice(0)
        self._options = run_options()
        self._bind_outputs(greedy=False)

    def use_adapter(self, adapter: BoundAdapter | None) -> None:
        """Bind an adapter."""
        if adapter is not None and adapter is not self.adapter:
            self.use_values(adapter.values)
            self.adapter = adapter

    def use_values(self, values: Mapping[str, Tensor]) -> None:
        """Bind adapter inputs that are not those of one adapter."""
        bind_values(self._binding, values, self.values, self._capabilities.memory)
        self.values, self.adapter = values, None

    def use_rows(self, cache: KVCache | None, rows: slice) -> None:
        """Bind the keys and values of a run of rows."""
        if cache is not None and (cache is not self._cache or rows != self._rows):
            self._cache, self._rows = cache, rows
            self._bind_cache()

    def run(
        self,
        token_ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        wanted: int,
        width: int = 1,
        *,
        greedy: bool,
    ) -> Scores:
        """One forward pass.

        Args:
            token_ids: for every row the same number of tokens.
            lengths: of the rows, these tokens included.
            wanted: how many positions at the end give logits.
            width: tokens of the run, padding on the right included.
            greedy: whether their most likely tokens do, where the graph gives them.
        """
        greedy = greedy and self._capabilities.greedy
        if greedy is not self._greedy:
            # What is bound is copied from the device: never both.
            self._binding.clear_binding_outputs()
            self._bind_outputs(greedy=greedy)
            self._bind_cache()
        count = len(token_ids[0])
        begins = [length - count for length in lengths]
        scores = self._feeds.fill(token_ids, begins, wanted, width)
        if self._new is not None and self._cache is not None:
            self._new.bind(self._binding, len(begins), width)
            if self._capabilities.memory is not None:  # bound is a copy from before the cache was changed
                self._bind_cache()
        size = len(begins), count
        position = max(lengths)
        run_bound(self._session, self._binding, self._options, self._watchdog, size=size, position=position)
        if self._new is not None and self._cache is not None:
            self._new.add_to(self._cache, self._rows, begins, count)
        if greedy:
            return tokens_of_vocabulary(scores, self._config.architecture.vocab_size)
        return scores

    def _bind_outputs(self, *, greedy: bool) -> None:
        """Have runs give logits, or tokens; no output may be bound."""
        numbers, capabilities = self._config.architecture, self._capabilities
        self._greedy = greedy
        self._feeds = Feeds(self._binding, capabilities, numbers.vocab_size, greedy=greedy)
        self._new = NewTokens(numbers, capabilities.cache_type) if capabilities.new_tokens else None

    def _bind_cache(self) -> None:
        if self._cache is not None:
            self._cache.bind(self._binding, self._rows, in_place=self._new is None)


def _digest(adapter: BoundAdapter | None) -> str:
    return "" if adapter is None else adapter.digest
