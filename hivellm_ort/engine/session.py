"""A base model in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig, GraphForm
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.devices import Device
from hivellm_ort.engine.placement import place
from hivellm_ort.engine.prefixes import PrefixCache
from hivellm_ort.engine.starting import start_session
from hivellm_ort.engine.targets import CPU
from hivellm_ort.errors import LoadError, ProviderError

__all__ = ["PREFIX_CACHE_BYTES", "Engine"]

PREFIX_CACHE_BYTES = 256 << 20
"""Most bytes of keys and values of earlier requests, per base."""


class Engine:
    """The ONNX Runtime sessions of one base bundle, shared by every expert on it. Safe to use from any thread.

    Args:
        folder: the base bundle.
        config: its `decoder.json`; read from the folder by default.
        device: what to run on; `auto` by default. Another device than the CPU is started at once.
        threads: intra-op threads; None leaves it to ONNX Runtime (one per physical core).

    Attributes:
        provider: the execution provider that runs it.

    Raises:
        ManifestError: `decoder.json` is wrong.
        ProviderError: the device is not to be had.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig | None = None,
        *,
        device: Device | None = None,
        threads: int | None = None,
    ):
        self.folder = folder
        self.config = config or DecoderConfig.from_file(folder / DECODER_JSON)
        _require_known_form(self.config)
        self._placement = place(device or Device(), self.config)
        self.provider = self._placement.provider.name
        self._threads = threads
        self._lock = threading.Lock()
        self._sessions: dict[bool, Any] = {}
        self.prefixes = PrefixCache(PREFIX_CACHE_BYTES)
        if self._placement.provider is not CPU:
            self._session(self.config.merged is None)

    def decoder(self, *, adapters: bool) -> Decoder:
        """A decoder without rows yet, on the graph that takes adapters or on the one that takes none.

        Raises:
            LoadError: ONNX Runtime cannot load the graph, or the device does not start.
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
        path = self.folder / graph
        if not path.is_file():
            raise LoadError(
                f"the base bundle {self.config.name!r} has no {graph}: a bundle with a merged adapter takes no others"
            )
        where = f"{graph} of base bundle {self.config.name!r}"
        try:
            session = start_session(path, self._placement, threads=self._threads)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise LoadError(f"{where} cannot be loaded: {error}") from error
        if graph == ADAPTER_GRAPH:
            found = {value.name for value in session.get_inputs()}
            missing = [name for site in self.config.sites for name in site.inputs if name not in found]
            if missing:
                raise LoadError(
                    f"{where} lacks the input {missing[0]} that {DECODER_JSON} promises: export it again"
                )
        self.provider = session.get_providers()[0]
        return session


def _require_known_form(config: DecoderConfig) -> None:
    """Refuse graphs that `Decoder` does not know how to run.

    Raises:
        ProviderError: their caches, inputs or shapes are not those of target `cpu`.
    """
    known, form = GraphForm(), config.graph
    fields = ("cache_dtype", "adapter_dtype", "shapes", "multi_token_append", "cache_update")
    strange = [name for name in fields if getattr(form, name) != getattr(known, name)]
    strange += sorted(f"inputs.{name}" for name in form.inputs.keys() ^ known.inputs.keys())
    if strange:
        raise ProviderError(
            f"base {config.name!r}: this version of hivellm-ort cannot run graphs of target {config.target!r} yet "
            f"({', '.join(strange)} of decoder.json): export with --target cpu"
        )
