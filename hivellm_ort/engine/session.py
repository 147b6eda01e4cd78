"""A base model in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.prefixes import PrefixCache
from hivellm_ort.engine.providers import choose_provider, import_onnxruntime
from hivellm_ort.errors import LoadError

__all__ = ["PREFIX_CACHE_BYTES", "Engine"]

PREFIX_CACHE_BYTES = 256 << 20
"""Most bytes of keys and values of earlier requests, per base."""


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
        self.prefixes = PrefixCache(PREFIX_CACHE_BYTES)

    def decoder(self, *, adapters: bool) -> Decoder:
        """A decoder without rows yet, on the graph that takes adapters or on the one that takes none.

        Raises:
            LoadError: ONNX Runtime cannot load the graph.
        """
        return Decoder(self._session(adapters), self.config, self.prefixes)

    def close(self) -> None:
        """Free sessions and what is kept of prompts; decoders keep their session."""
        with self._lock:
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
