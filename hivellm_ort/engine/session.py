"""A base model in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.prefixes import PrefixCache
from hivellm_ort.engine.providers import choose_provider, import_onnxruntime
from hivellm_ort.errors import LoadError

__all__ = ["PREFIX_CACHE_BYTES", "Engine"]

PREFIX_CACHE_BYTES = 256 << 20
"""Most bytes of keys and values of earlier requests, per base."""

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
        self.prefixes = PrefixCache(PREFIX_CACHE_BYTES)

    def decoder(self, adapter: BoundAdapter | None, *, capacity: int, rows: int = 1) -> Decoder:
        """A decoder whose first row is begun with `adapter` (None: the base alone) and room for `capacity` tokens.

        Give it back with `release`: its buffers are used again, and only an adapter's inputs are bound anew.

        Raises:
            LoadError: ONNX Runtime cannot load the graph.
            OutOfMemoryError: the cache cannot be allocated.
        """
        session = self._session(adapter is not None)
        with self._lock:
            for decoder in self._idle:
                if decoder.session is session and decoder.rows == rows:
                    self._idle.remove(decoder)
                    break
            else:
                decoder = Decoder(session, self.config, self.prefixes, rows)
        decoder.start(0, adapter, capacity)
        return decoder

    def release(self, decoder: Decoder) -> None:
        """Keep a decoder for the next request, if it is one small row and none is kept yet."""
        with self._lock:
            kept = any(other.session is decoder.session for other in self._idle)
            if not kept and decoder.rows == 1 and decoder.capacity <= _IDLE_CAPACITY and self._sessions:
                self._idle.append(decoder)

    def forget(self, adapter: BoundAdapter) -> None:
        """Let go of what is kept for reuse with `adapter` bound, so that its memory can be freed."""
        with self._lock:
            self._idle = [decoder for decoder in self._idle if decoder.adapter is not adapter]
        self.prefixes.clear(adapter.digest)

    def close(self) -> None:
        """Free sessions and buffers; running generations keep theirs until they end."""
        with self._lock:
            self._idle.clear()
            self._sessions.clear()
        self.prefixes.clear()

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
