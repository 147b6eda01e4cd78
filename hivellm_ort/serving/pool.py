"""The bases of this process. Each is loaded once, and freed when its last user releases it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.devices import Device, Placement, choose_placement
from hivellm_ort.engine.session import PREFIX_CACHE_BYTES
from hivellm_ort.errors import argument
from hivellm_ort.forking import in_child
from hivellm_ort.serving.base import Base
from hivellm_ort.text.tokenizer_file import Recall

__all__ = ["BASES", "BasePool"]

_LOG = logging.getLogger("hivellm_ort")

_Key = tuple[str, Placement, int | None]


@dataclass(eq=False)
class _Entry:
    """One base and the number of its users. `loading` is held while the base loads, so only its own users wait."""

    base: Base | None = None
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class BasePool:
    """One `Base` per bundle digest, placement and thread count. It is closed when its last user releases it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while a base is loaded or closed
        self._entries: dict[_Key, _Entry] = {}
        self._inherited: list[object] = []
        in_child(self._begin_anew)

    def acquire(
        self,
        folder: Path,
        config: DecoderConfig,
        *,
        device: Device | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int | None = None,
        recall: Recall | None = None,
    ) -> Base:
        """Return the base of a bundle. Call `release` once for each call of this method.

        Args:
            folder: The bundle.
            config: Its `decoder.json`.
            device: The device. Default: the best one for its graphs.
            threads: Intra-op threads; None for the default of ONNX Runtime.
            prefix_cache_bytes: Most bytes of the prefix cache. Default: 256 MiB. A base in memory keeps its limit,
                and a warning is logged.
            recall: As for `Base`.

        Raises:
            LoadError: The bundle cannot be used.
        """
        placement = choose_placement(device or Device(), config)
        placement.announce(config.name)
        key = (config.sha256, placement, threads)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.users += 1
        try:
            with entry.loading:
                if entry.base is None:
                    size = PREFIX_CACHE_BYTES if prefix_cache_bytes is None else prefix_cache_bytes
                    entry.base = Base(
                        folder,
                        config,
                        placement=placement,
                        threads=threads,
                        prefix_cache_bytes=size,
                        recall=recall,
                    )
            _compare_prefix_cache(entry.base, prefix_cache_bytes)
        except BaseException:
            self._let_go(key, entry)
            raise
        return entry.base

    @property
    def bases(self) -> list[Base]:
        """The bases in memory."""
        with self._lock:
            return [entry.base for entry in self._entries.values() if entry.base is not None]

    def hold(self, base: Base) -> None:
        """Add a user to a base from `acquire`."""
        with self._lock:
            self._entries[self._key(base)].users += 1

    def release(self, base: Base) -> None:
        """Remove a user from a base from `acquire` or `hold`. A base of the parent of a forked process stays."""
        if not base.scheduler.home.here:
            return
        with self._lock:
            key = self._key(base)
            entry = self._entries[key]
        self._let_go(key, entry)

    def _let_go(self, key: _Key, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users:
                return
            del self._entries[key]
        if entry.base is not None:
            entry.base.close()

    def _begin_anew(self) -> None:
        """Start without bases in a forked process. Sessions stay, because freeing one waits for missing threads."""
        self._inherited.append(self._entries)
        self._lock = threading.Lock()
        self._entries = {}

    def _key(self, base: Base) -> _Key:
        return next(key for key, entry in self._entries.items() if entry.base is base)


def _compare_prefix_cache(base: Base, wanted: int | None) -> None:
    size = base.engine.prefixes.max_bytes
    if wanted is not None and wanted != size:
        _LOG.warning(
            "%s has no effect: the base %r is in memory with %d bytes, for all its experts",
            argument("prefix_cache_bytes", wanted),
            base.config.name,
            size,
        )


BASES = BasePool()
"""The bases of this process. All experts share them."""
