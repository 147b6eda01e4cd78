"""Keys and values of earlier requests, for requests that begin like them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.engine.device_arrays import Array

__all__ = ["PrefixCache", "SavedPrefix"]

_MIN_TOKENS = 16  # fewer are read faster than they are looked up and copied


@dataclass(frozen=True, eq=False)
class SavedPrefix:
    """Tokens of a row, int32 [n], and their keys and values, [2 * layers, kv_heads, n, head_dim]."""

    adapter: str
    token_ids: NDArray[np.int32]
    block: Array


class PrefixCache:
    """What rows of one base have read, by adapter and tokens; the least recently used goes first.

    Keys and values depend on the base and on the adapter's weights, so an entry serves only the adapter with the
    digest it was made with. Safe to use from any thread.

    Args:
        max_bytes: most bytes of all entries; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.hits = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, SavedPrefix] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._nbytes

    def find(self, adapter: str, token_ids: Sequence[int]) -> tuple[SavedPrefix | None, int]:
        """The entry that begins with most of `token_ids`, and with how many; (None, 0) for too few."""
        with self._lock:
            key, length = self._longest(adapter, np.array(token_ids, np.int32))
            if length < _MIN_TOKENS:
                return None, 0
            self._entries.move_to_end(key)
            self.hits += 1
            return self._entries[key], length

    def add(self, adapter: str, token_ids: Sequence[int], save: Callable[[int], Array], size: int) -> None:
        """Keep a row's tokens, unless an entry begins with all of them already.

        Args:
            adapter: digest of the row's adapter.
            token_ids: the tokens the row has read.
            save: copies the keys and values of so many tokens.
            size: bytes of one token's keys and values.
        """
        ids = np.array(token_ids, np.int32)
        if len(ids) < _MIN_TOKENS or size * len(ids) > self.max_bytes:
            return
        with self._lock:
            key, length = self._longest(adapter, ids)
            if length == len(ids):
                self._entries.move_to_end(key)
                return
            if length and length == len(self._entries[key].token_ids):
                self._remove(key)  # the new one begins with all of it
            self._make_room(size * len(ids))
            entry = SavedPrefix(adapter, ids, save(len(ids)))
            self._entries[id(entry)] = entry
            self._nbytes += entry.block.nbytes

    def resize(self, max_bytes: int) -> None:
        """Change the budget; what does not fit any more is forgotten."""
        with self._lock:
            self.max_bytes = max_bytes
            self._make_room(0)

    def shrink(self, nbytes: int) -> None:
        """Forget the least recently used entries until there are no more bytes than these."""
        with self._lock:
            while self._entries and self._nbytes > nbytes:
                self._remove(next(iter(self._entries)))

    def clear(self, adapter: str | None = None) -> None:
        """Forget the entries of one adapter, or all."""
        with self._lock:
            for key in [k for k, entry in self._entries.items() if adapter in (None, entry.adapter)]:
                self._remove(key)

    def _longest(self, adapter: str, ids: NDArray[np.int32]) -> tuple[int, int]:
        best = (0, 0)
        for key, entry in self._entries.items():
            if entry.adapter == adapter:
                count = min(len(ids), len(entry.token_ids))
                differ = np.flatnonzero(ids[:count] != entry.token_ids[:count])
                length = int(differ[0]) if differ.size else count
                if length > best[1]:
                    best = (key, length)
        return best

    def _make_room(self, size: int) -> None:
        while self._entries and self._nbytes + size > self.max_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: int) -> None:
        self._nbytes -= self._entries.pop(key).block.nbytes
