"""The prefix cache: keys and values of earlier requests, for later requests with the same first tokens."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.engine.ort_values import Array

__all__ = ["PrefixCache", "SavedPrefix"]

_MIN_TOKENS = 16  # fewer are computed faster than they are found and copied


@dataclass(frozen=True, eq=False)
class SavedPrefix:
    """The tokens of a row, with their keys and values.

    Attributes:
        adapter: The digest of the row's adapter.
        token_ids: The tokens, int32 [n].
        keys_values: Their keys and values, [2 * layers, kv_heads, n, head_dim].
    """

    adapter: str
    token_ids: NDArray[np.int32]
    keys_values: Array


class PrefixCache:
    """Saved prefixes of one base, by adapter and tokens. The least recently used one leaves first.

    Keys and values depend on the base and on the adapter weights, so an entry serves only the adapter whose digest
    it has. Safe to use from any thread.

    Args:
        max_bytes: The most bytes of all entries. 0 keeps nothing.

    Attributes:
        max_bytes: The most bytes of all entries.
        hits: How often a prefix was found.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.hits = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, SavedPrefix] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return self._nbytes

    def find(self, adapter: str, token_ids: Sequence[int]) -> tuple[SavedPrefix | None, int]:
        """Find the entry that shares the longest prefix with a prompt.

        Args:
            adapter: The digest of the adapter.
            token_ids: The tokens of the prompt.

        Returns:
            The entry, and how many first tokens it shares. (None, 0) if they are too few to gain anything.
        """
        with self._lock:
            key, length = self._longest(adapter, np.array(token_ids, np.int32))
            if length < _MIN_TOKENS:
                return None, 0
            self._entries.move_to_end(key)
            self.hits += 1
            return self._entries[key], length

    def add(self, adapter: str, token_ids: Sequence[int], save: Callable[[int], Array], size: int) -> None:
        """Save the tokens of a row, unless an entry begins with all of them.

        Args:
            adapter: The digest of the row's adapter.
            token_ids: The tokens that the row has read.
            save: Takes a number of tokens. Returns a copy of the keys and values of so many first tokens.
            size: The bytes of the keys and values of one token.
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
            self._nbytes += entry.keys_values.nbytes

    def resize(self, max_bytes: int) -> None:
        """Change the limit, and remove what no longer fits.

        Args:
            max_bytes: The most bytes of all entries.
        """
        with self._lock:
            self.max_bytes = max_bytes
            self._make_room(0)

    def shrink(self, nbytes: int) -> None:
        """Remove the least recently used entries until the others fit.

        Args:
            nbytes: The most bytes that may be left.
        """
        with self._lock:
            while self._entries and self._nbytes > nbytes:
                self._remove(next(iter(self._entries)))

    def clear(self, adapter: str | None = None) -> None:
        """Remove entries.

        Args:
            adapter: The digest of the adapter whose entries are removed. None removes all.
        """
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
        self._nbytes -= self._entries.pop(key).keys_values.nbytes
