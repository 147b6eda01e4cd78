"""A base model in memory, and one row of generation on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.cache import KVCache
from hivellm_ort.engine.providers import choose_provider, import_onnxruntime
from hivellm_ort.errors import ContextLengthError, InferenceError, LoadError, OutOfMemoryError

__all__ = ["Decoder", "Engine"]

_GROWTH = 256  # cache capacities are multiples of this many tokens
_PREFILL_CHUNK = 1024  # tokens per forward pass of a prompt: bounds the activations' memory
_IDLE_CAPACITY = 2048  # a decoder with a larger cache is not kept for reuse


class Engine:
    """The ONNX Runtime sessions of one base bundle, shared by every expert on it. Safe to use from any thread.

    Args:
        folder: the base bundle.
        config: its `decoder.json`; read from the folder by default.
        device: see `choose_provider`.
        threads: intra-op threads; None leaves it to ONNX Runtime (one per physical core).

    Raises:
        ManifestError: `decoder.json` is wrong.
        ProviderError: the device is not to be had.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig | None = None,
        *,
        device: str | None = None,
        threads: int | None = None,
    ):
        self.folder = folder
        self.config = config or DecoderConfig.from_file(folder / DECODER_JSON)
        self.provider = choose_provider(device, self.config.target)
        self._threads = threads
        self._lock = threading.Lock()
        self._sessions: dict[bool, Any] = {}
        self._idle: list[Decoder] = []

    def decoder(self, adapter: BoundAdapter | None, *, capacity: int) -> Decoder:
        """A decoder with `adapter` bound (None: the base alone) and room for `capacity` tokens.

        Give it back with `release`: its buffers are used again, and only the adapter's inputs are bound anew.

        Raises:
            OutOfMemoryError: the cache cannot be allocated.
        """
        session = self._session(adapter is not None)
        with self._lock:
            for decoder in self._idle:
                if decoder.session is session:
                    self._idle.remove(decoder)
                    break
            else:
                decoder = Decoder(session, self.config)
        decoder.start(adapter, capacity)
        return decoder

    def release(self, decoder: Decoder) -> None:
        """Keep a decoder for the next request, if it is small and none is kept yet."""
        with self._lock:
            kept = any(other.session is decoder.session for other in self._idle)
            if not kept and decoder.capacity <= _IDLE_CAPACITY and self._sessions:
                self._idle.append(decoder)

    def forget(self, adapter: BoundAdapter) -> None:
        """Let go of what is kept for reuse with `adapter` bound, so that its memory can be freed."""
        with self._lock:
            self._idle = [decoder for decoder in self._idle if decoder.adapter is not adapter]

    def close(self) -> None:
        """Free sessions and buffers; running generations keep theirs until they end."""
        with self._lock:
            self._idle.clear()
            self._sessions.clear()

    def _session(self, adapters: bool) -> Any:
        with self._lock:
            if adapters not in self._sessions:
                self._sessions[adapters] = self._create(ADAPTER_GRAPH if adapters else BASE_GRAPH)
            return self._sessions[adapters]

    def _create(self, graph: str) -> Any:
        ort = import_onnxruntime()
        path = self.folder / graph
        if not path.is_file():
            raise LoadError(
                f"the base bundle {self.config.name!r} has no {graph}: a bundle with a merged adapter takes no others"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        where = f"{graph} of base bundle {self.config.name!r}"
        try:
            session = ort.InferenceSession(str(path), options, providers=[self.provider])
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise LoadError(f"{where} cannot be loaded: {error}") from error
        if graph == ADAPTER_GRAPH:
            found = {value.name for value in session.get_inputs()}
            missing = [name for site in self.config.sites for name in site.inputs if name not in found]
            if missing:
                raise LoadError(
                    f"{where} lacks the input {missing[0]} that {DECODER_JSON} promises: export it again"
                )
        return session


class Decoder:
    """One row of generation: an IOBinding, a cache and a position. Not safe to share between threads.

    `swap_seconds` is the time the last change of adapter took, 0.0 where it was bound already.
    """

    def __init__(self, session: Any, config: DecoderConfig):
        self.session = session
        self.swap_seconds = 0.0
        self._config = config
        self._binding = session.io_binding()
        # Held as long as it is bound: ONNX Runtime keeps the address of its arrays, not the arrays.
        self.adapter: BoundAdapter | None = None
        self._cache: KVCache | None = None
        self._length = 0
        ort = import_onnxruntime()
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._row = np.zeros(1, np.int64)
        self._token = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, config.architecture.vocab_size), np.float32)
        # On the CPU an OrtValue shares memory with its array: writing to the array is all an update takes.
        value = ort.OrtValue.ortvalue_from_numpy
        self._token_value = value(self._token)
        self._binding.bind_ortvalue_input("seqlens_k", value(self._seqlens))
        self._binding.bind_ortvalue_input("total_sequence_length", value(self._total))
        self._binding.bind_ortvalue_input("logits_rows", value(self._row))
        self._binding.bind_ortvalue_output("logits", value(self._logits))

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens the cache has room for before it grows."""
        return self._cache.capacity if self._cache else 0

    def start(self, adapter: BoundAdapter | None, capacity: int) -> None:
        """Begin anew with an empty cache of at least `capacity` tokens and `adapter` bound."""
        self._length = 0
        self.swap_seconds = 0.0
        if adapter is not None and adapter is not self.adapter:
            begin = time.perf_counter()
            adapter.bind(self._binding, self.adapter)
            self.adapter = adapter
            self.swap_seconds = time.perf_counter() - begin
        self._reserve(capacity)

    def forward(self, token_ids: list[int]) -> NDArray[np.float32]:
        """Append `token_ids` and return the logits after the last one, float32 [vocab].

        The array is overwritten by the next call.

        Raises:
            ContextLengthError: the cache would exceed the model's context.
            OutOfMemoryError: the cache cannot grow, or the pass cannot allocate.
            InferenceError: ONNX Runtime fails.
        """
        for begin in range(0, len(token_ids), _PREFILL_CHUNK):
            self._run(token_ids[begin : begin + _PREFILL_CHUNK])
        return self._logits.reshape(-1)

    def _run(self, token_ids: list[int]) -> None:
        count = len(token_ids)
        self._reserve(self._length + count)
        if count == 1:
            self._token[0, 0] = token_ids[0]
            self._binding.bind_ortvalue_input("input_ids", self._token_value)
        else:
            ort = import_onnxruntime()
            ids = np.array([token_ids], np.int64)
            self._binding.bind_ortvalue_input("input_ids", ort.OrtValue.ortvalue_from_numpy(ids))
        self._length += count
        self._seqlens[0] = self._length - 1
        self._total[()] = self._length
        self._row[0] = count - 1
        try:
            self.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            kind = OutOfMemoryError if "allocat" in str(error) else InferenceError
            raise kind(f"the model failed on {count} tokens at position {self._length}: {error}") from error

    def _reserve(self, tokens: int) -> None:
        limit = self._config.architecture.max_position_embeddings
        if tokens > limit:
            raise ContextLengthError(f"{tokens} tokens exceed the model's context of {limit}")
        if tokens <= self.capacity:
            return
        # Doubling keeps the copies of a long answer linear in its length.
        wanted = max(tokens, 2 * self.capacity if self._length else 0)
        capacity = min(-(-wanted // _GROWTH) * _GROWTH, limit)
        cache = KVCache(self._config.architecture, batch=1, capacity=capacity)
        if self._length and self._cache is not None:
            cache.copy_from(self._cache, self._length)
        cache.bind(self._binding)
        self._cache = cache
