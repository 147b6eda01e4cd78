"""A base model in memory."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, WEIGHTS_FILE, DecoderConfig
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.devices import Device
from hivellm_ort.engine.interface import interface_fault
from hivellm_ort.engine.ort_session import start_session
from hivellm_ort.engine.placement import Placement, choose_placement
from hivellm_ort.engine.prefixes import PrefixCache
from hivellm_ort.engine.provider_table import CPU
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import LoadError, ProviderError

__all__ = ["PREFIX_CACHE_BYTES", "Engine"]

PREFIX_CACHE_BYTES = 256 << 20
"""Most bytes of keys and values of earlier requests, per base."""


class Engine:
    """The ONNX Runtime sessions of one base bundle, shared by every expert on it. Safe to use from any thread.

    Args:
        folder: the base bundle.
        config: its `decoder.json`; read from the folder by default.
        placement: where it runs; what `auto` chooses by default. Another device than the CPU is started at once.
        threads: intra-op threads; None leaves it to ONNX Runtime (one per physical core).

    Attributes:
        provider: the execution provider that runs it.

    Raises:
        ManifestError: `decoder.json` is wrong.
        ProviderError: the device is unavailable, or the graphs ask for what this version does not know.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig | None = None,
        *,
        placement: Placement | None = None,
        threads: int | None = None,
    ):
        self.folder = folder
        self.config = config or DecoderConfig.from_file(folder / DECODER_JSON)
        self._placement = placement or choose_placement(Device(), self.config)
        self._capabilities = Capabilities.of(self.config, self._placement)
        self.provider = self._placement.provider.name
        self._threads = threads
        self._lock = threading.Lock()
        self._sessions: dict[bool, Any] = {}
        self.prefixes = PrefixCache(PREFIX_CACHE_BYTES)
        if self._placement.provider is not CPU:
            self.start()

    def start(self) -> None:
        """Open the session that requests use, which otherwise the first of them does: files may be gone by then.

        Raises:
            LoadError: as `decoder`.
        """
        self._session(self.config.merged is None)

    def decoder(self, *, adapters: bool, watchdog: Watchdog | None = None) -> Decoder:
        """A decoder without rows yet, on the graph that takes adapters or on the one that takes none.

        Args:
            adapters: on which graph.
            watchdog: who may end its runs; None for nobody.

        Raises:
            LoadError: ONNX Runtime cannot load the graph, or the device does not start.
        """
        session = self._session(adapters)
        capabilities = self._capabilities
        if session.get_providers()[0] != self._placement.provider.name:  # the CPU took over
            capabilities = dataclasses.replace(capabilities, memory=None, cuda_graph=False)
        return Decoder(session, self.config, capabilities, self.prefixes, watchdog)

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
        if graph == ADAPTER_GRAPH and self.config.merged is not None:
            raise LoadError(
                f"the base bundle {self.config.name!r} has no {graph}: a bundle with a merged adapter takes no others"
            )
        path, where = self.folder / graph, f"{graph} of base bundle {self.config.name!r}"
        if not path.is_file():
            raise LoadError(
                f"{where} was removed from {self.folder}: load again, or fetch or export the bundle again"
            )
        try:
            session = start_session(path, self._placement, threads=self._threads)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise LoadError(
                f"{where} cannot be loaded: {error}; if it or {WEIGHTS_FILE} is damaged, 'hivellm-ort cache prune' "
                "removes it from the cache; a bundle of your own is fetched or exported again"
            ) from error
        fault = interface_fault(session, self.config, adapters=graph == ADAPTER_GRAPH)
        if fault is not None:
            raise LoadError(f"{where} {fault}: export it again")
        self.provider = session.get_providers()[0]
        return session
