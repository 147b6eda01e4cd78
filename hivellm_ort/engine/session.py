"""The ONNX Runtime sessions of a base: started on the chosen device, checked, shared by all experts on the base."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, WEIGHTS_FILE, DecoderConfig
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.devices import Device, Placement, choose_placement, fallback_hint
from hivellm_ort.engine.environment import cpu_flags, import_onnxruntime
from hivellm_ort.engine.graph_signature import signature_fault
from hivellm_ort.engine.prefix_cache import PrefixCache
from hivellm_ort.engine.providers import CPU
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import LoadError, ProviderError

__all__ = ["PREFIX_CACHE_BYTES", "Engine", "start_session"]

_logger = logging.getLogger("hivellm_ort")

PREFIX_CACHE_BYTES = 256 << 20
"""The default size of the prefix cache of a base, in bytes."""


class Engine:
    """The ONNX Runtime sessions of one base bundle, shared by every expert on it. Safe to use from any thread.

    Args:
        folder: The folder of the base bundle.
        config: Its `decoder.json`. It is read from the folder by default.
        placement: The provider that runs it. By default it is the one that `auto` chooses. Any other than the CPU is
            started at once.
        threads: The number of intra-op threads. None leaves it to ONNX Runtime (one per physical core).

    Attributes:
        folder: The folder of the base bundle.
        config: Its `decoder.json`.
        provider: The name of the execution provider that runs it.
        prefixes: The prefix cache of the base.

    Raises:
        ManifestError: `decoder.json` is wrong.
        ProviderError: The device is unavailable, or this version cannot run graphs of that form.
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
        """Start the session that requests use. Otherwise the first request starts it, and the files may be gone.

        Raises:
            LoadError: As for `decoder`.
        """
        self._session(self.config.merged is None)

    def decoder(self, *, adapters: bool, watchdog: Watchdog | None = None) -> Decoder:
        """Make a decoder without rows.

        Args:
            adapters: Whether it uses the graph that takes adapters, or the graph that takes none.
            watchdog: Ends runs that nobody waits for. None means that no run is ended.

        Returns:
            The decoder.

        Raises:
            LoadError: ONNX Runtime cannot load the graph, or the device does not start.
        """
        session = self._session(adapters)
        capabilities = self._capabilities
        if session.get_providers()[0] != self._placement.provider.name:  # the CPU took over
            capabilities = dataclasses.replace(capabilities, memory=None, graph_capture=False)
        return Decoder(session, self.config, capabilities, self.prefixes, watchdog)

    def close(self) -> None:
        """Free the sessions and the prefix cache. Decoders keep their session."""
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
        fault = signature_fault(session, self.config, adapters=graph == ADAPTER_GRAPH)
        if fault is not None:
            raise LoadError(f"{where} {fault}: export it again")
        self.provider = session.get_providers()[0]
        return session


def start_session(path: Path, placement: Placement, *, threads: int | None) -> Any:
    """Start a session, and check that the chosen provider runs it.

    Args:
        path: The graph.
        placement: The provider that shall run it.
        threads: The number of intra-op threads. None leaves it to ONNX Runtime.

    Returns:
        The `onnxruntime.InferenceSession`. The first of its `get_providers()` runs it.

    Raises:
        ProviderError: The provider does not start, or would run nothing of the graph.
        Exception: ONNX Runtime cannot load the graph on the CPU. It raises a dozen types.
    """
    ort = import_onnxruntime()
    if placement.provider is not CPU:
        try:
            return _start_on_device(ort, path, placement, threads)
        except ProviderError as error:
            if not placement.fallback:
                raise
            _logger.warning("%s runs on the CPU, as fallback allows: %s", path.name, error)
    return ort.InferenceSession(
        str(path), _session_options(ort, threads), providers=[CPU.name], enable_fallback=0
    )


def _start_on_device(ort: ModuleType, path: Path, placement: Placement, threads: int | None) -> Any:
    provider = placement.provider
    if provider.preload_dlls and hasattr(ort, "preload_dlls"):
        # It finds the libraries that pip installed. It prints what is missing, and standard output is for answers.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    options = _session_options(ort, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider.sequential:
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    providers = [(provider.name, placement.provider_options)]
    try:
        # Without ONNX Runtime's own fallback, which prints and goes on with the CPU.
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        raise _start_error(placement, path, " ".join(str(error).split())) from error
    if provider.name not in session.get_providers():
        raise _start_error(placement, path, "ONNX Runtime left it out; its own message is on standard error")
    nodes = _nodes_per_provider(session)
    if nodes and not nodes[provider.name]:
        raise _start_error(placement, path, f"it would run none of the graph's {nodes.total()} nodes")
    counts = ", ".join(f"{count} on {name}" for name, count in nodes.most_common())
    _logger.info("%s started on device %s; nodes: %s", path.name, placement.device, counts or "not known")
    return session


def _session_options(ort: ModuleType, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # On x86 without VNNI sums of two 8-bit products overflow 16 bits: w8a8 then takes slower, exact kernels. ONNX
    # Runtime would take them with AMX too, which has no such sums.
    if not cpu_flags().get("amx_int8"):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _nodes_per_provider(session: Any) -> Counter[str]:
    """Count the nodes that each provider runs. The result is empty if this ONNX Runtime does not say."""
    assignment = getattr(session, "get_provider_graph_assignment_info", None)
    nodes: Counter[str] = Counter()
    for subgraph in assignment() if assignment is not None else ():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return nodes


def _start_error(placement: Placement, path: Path, cause: str) -> ProviderError:
    return ProviderError(
        f"device {placement.device!r} ({placement.provider.name}) does not start for {path.name}: {cause}; "
        f"{placement.provider.cure_for(cause)}; {fallback_hint()}"
    )
