"""Loads experts into memory when requests need them, and evicts them when a limit is exceeded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from hivellm_ort.errors import InferenceError, LoadError, OptionError, UnknownExpertError
from hivellm_ort.expert import Expert
from hivellm_ort.forking import Home
from hivellm_ort.manager.deferred import BackgroundWork, DeferredEvents
from hivellm_ort.manager.entry import ExpertEntry, Lease
from hivellm_ort.manager.eviction import MemoryLimits
from hivellm_ort.manager.info import ExpertInfo, base_stats
from hivellm_ort.observability import (
    BaseFreed,
    BaseLoaded,
    Events,
    EvictionReason,
    ExpertEvicted,
    ExpertLoaded,
    ExpertUnloaded,
    StepDone,
)
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.serving.base import Base
from hivellm_ort.serving.pool import BASES

__all__ = ["ExpertRegistry"]

CheckEntry = Callable[[ExpertEntry | None, list[ExpertManifest]], None]
"""Takes the entry that would be replaced, or None, and the other manifests. Raises an error to refuse."""

CheckRemoval = Callable[[ExpertEntry, list[ExpertManifest]], None]
"""Takes the entry to remove and the other manifests. Raises an error to refuse."""

_FreeReason = Literal["unused", "closed"]


class ExpertRegistry:
    """The experts of a manager, in memory or evicted. Thread-safe.

    Experts that are in use or pinned are never evicted, so memory can exceed the limits. Evicted are first cached
    prefixes, then adapters, then bases without adapters; of each the least recently used first.

    While the lock is held, no code waits and no event is emitted: threads that answer requests need the lock too, and
    so do listeners that call the manager.

    Args:
        max_experts: Most experts in memory; None for no limit.
        max_bytes: Most bytes of bases, adapters and caches; None for no limit.
        events: Receives the events.

    Attributes:
        closed: Whether new leases are refused.
        home: The process that loaded the experts.
    """

    def __init__(self, max_experts: int | None, max_bytes: int | None, events: Events):
        self.closed = False
        self.home = Home("a manager that was made before")
        self._limits = MemoryLimits(max_experts, max_bytes)
        self._evictions = 0
        self._events = events
        self._deferred = DeferredEvents(events)
        self._changed = threading.Condition(threading.RLock())
        self._entries: dict[str, ExpertEntry] = {}
        self._draining: set[ExpertEntry] = set()  # replaced or unloaded, with running requests
        self._bases: dict[Base, Callable[[], None]] = {}  # with the function that removes the listeners
        self._leases = 0
        self._background = BackgroundWork(self._changed)
        self._eviction_wanted = False

    def entries(self) -> list[ExpertEntry]:
        """Return all entries, in the order in which their names were first loaded."""
        with self._changed:
            return list(self._entries.values())

    def bases(self) -> list[Base]:
        """Return the bases in memory."""
        with self._changed:
            return list(self._bases)

    def infos(self) -> list[ExpertInfo]:
        """Describe all entries at the same moment."""
        with self._changed:
            return [entry.info() for entry in self._entries.values()]

    def stats(self) -> dict[str, Any]:
        """Return memory use and counts; see `ExpertManager.stats`."""
        with self._changed:
            entries = list(self._entries.values())
            bases = [base_stats(base) for base in self._bases]
            adapters = sum(entry.nbytes for entry in self._known())
            parts = ("bytes", "key_value_bytes", "prefix_bytes")
            return {
                "experts": len(entries),
                "loaded_experts": sum(entry.expert is not None for entry in entries),
                "max_loaded_experts": self._limits.max_experts,
                "bytes": adapters + sum(base[name] for base in bases for name in parts),
                "memory_budget": self._limits.max_bytes,
                "adapter_bytes": adapters,
                "evictions": self._evictions,
                "bases": bases,
            }

    def get(self, name: str) -> ExpertEntry:
        """Return the entry of a name.

        Raises:
            UnknownExpertError: No expert has this name.
        """
        with self._changed:
            try:
                return self._entries[name]
            except KeyError:
                known = ", ".join(map(repr, self._entries)) or "none"
                raise UnknownExpertError(f"no expert is loaded as {name!r}; loaded are: {known}") from None

    def add(self, entry: ExpertEntry, *, replace: bool, check: CheckEntry) -> None:
        """Register an entry under its name.

        Args:
            entry: An entry with its expert in memory. The expert is closed if this fails.
            replace: Whether the name may be in use.
            check: May refuse the entry.

        Raises:
            LoadError: The name is in use, or `check` refuses.
        """
        try:
            with self._changed:
                old = self._put(entry, replace, check)
        except BaseException:
            if entry.expert is not None:
                entry.expert.close()
            raise
        if old is not None:
            self._close_removed([old])
        self.evict(keep=entry)

    def _put(self, entry: ExpertEntry, replace: bool, check: CheckEntry) -> ExpertEntry | None:
        self._require_open()
        old = self._entries.get(entry.name)
        if old is not None and not replace:
            raise LoadError(
                f"an expert is loaded as {entry.name!r} already: give replace=True, unload it first, or choose "
                "another name"
            )
        check(old, [other.manifest for other in self._entries.values() if other is not old])
        if old is not None:
            entry.pins = old.pins
            self._draining.add(old)
        self._entries[entry.name] = entry
        self._note_loaded(entry)
        return old

    def remove(self, name: str, check: CheckRemoval) -> None:
        """Remove an entry. Running requests keep its expert until they end.

        Raises:
            UnknownExpertError: No expert has this name.
            LoadError: `check` refuses.
        """
        with self._changed:
            entry = self.get(name)
            check(entry, [other.manifest for other in self._entries.values() if other is not entry])
            del self._entries[name]
            self._draining.add(entry)
        self._close_removed([entry])

    def discard(self, entry: ExpertEntry) -> None:
        """Remove an entry if it is still registered."""
        with self._changed:
            if not self._is_current(entry):
                return
            del self._entries[entry.name]
            self._draining.add(entry)
        self._close_removed([entry])

    def lease(self, name: str, *, hits: int = 1) -> Lease:
        """Lease an expert. It is loaded again if it was evicted.

        Args:
            name: The name of the expert.
            hits: How many requests to count.

        Raises:
            UnknownExpertError: No expert has this name.
            LoadError: The expert was evicted, and its package cannot be loaded again.
        """
        while True:
            with self._changed:
                self._require_open()
                entry = self.get(name)
                entry.active += 1  # from now on it is not evicted
                entry.hits += hits
                self._leases += 1
            try:
                expert = entry.expert or self._load_again(entry)
            except BaseException:
                self._released(entry)
                raise
            if expert is not None:
                return Lease(entry, expert, self._released)
            self._released(entry)

    def pin(self, name: str) -> None:
        """Load an expert if it was evicted, and add a pin. Raises as `lease`."""
        while True:
            lease = self.lease(name, hits=0)
            with self._changed:
                current = self._is_current(lease.entry)
                lease.entry.pins += current
            lease.release()
            if current:
                return

    def unpin(self, name: str) -> None:
        """Remove one pin.

        Raises:
            UnknownExpertError: No expert has this name.
            OptionError (ValueError): The expert is not pinned.
        """
        with self._changed:
            entry = self.get(name)
            if not entry.pins:
                raise OptionError(f"{name!r} is not pinned")
            entry.pins -= 1
        self.evict()

    def close(self) -> None:
        """Wait until no expert is leased, then remove all entries."""
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: not self._leases and self._background.idle)
            entries = list(self._entries.values())
            self._entries.clear()
            self._draining.update(entries)
        self._close_removed(entries, reason="closed")

    def evict(self, keep: ExpertEntry | None = None) -> None:
        """Evict until memory is within the limits, or nothing more can be evicted.

        Args:
            keep: An entry that is not evicted, because it was just loaded and is not in use yet.
        """
        while True:
            with self._changed:
                self._trim_prefixes()
                found = self._limits.next_eviction(self._known(), self._bases, keep)
                if found is None:
                    break
                one, reason = found
                if isinstance(one, ExpertEntry):
                    self._evictions += 1
                    size, expert = one.nbytes, one.take()
                    self._deferred.add(
                        ExpertEvicted(
                            expert=one.name, base=one.base, digest=one.digest, bytes=size, reason=reason
                        )
                    )
                else:
                    self._drop_base(one, reason)
            if isinstance(one, ExpertEntry):
                expert.close()
            else:
                BASES.release(one)
        self._deferred.emit()

    def _load_again(self, entry: ExpertEntry) -> Expert | None:
        """Load the expert of an evicted entry; None if the entry was replaced or unloaded meanwhile."""
        with entry.load_lock:
            with self._changed:
                if entry.expert is not None or not self._is_current(entry):
                    return entry.expert
            expert = entry.load_again()
            with self._changed:
                current = not self.closed and self._is_current(entry)
                if current:
                    entry.expert = expert
                    self._note_loaded(entry)
        if not current:
            expert.close()
            return None
        self.evict()
        return expert

    def _note_loaded(self, entry: ExpertEntry) -> None:
        """Register the base of an expert that was just loaded, and keep the base in memory."""
        expert = entry.expert
        if expert is None:
            return
        base = expert.shared_base
        if base not in self._bases:
            BASES.hold(base)
            self._bases[base] = base.scheduler.follow(
                partial(self._stepped, base.config.name), self._became_idle
            )
            self._deferred.add(
                BaseLoaded(
                    base=entry.base, digest=entry.base_sha256, bytes=base.nbytes, seconds=entry.seconds
                )
            )
        self._deferred.add(
            ExpertLoaded(expert=entry.name, base=entry.base, digest=entry.digest, bytes=entry.nbytes)
        )

    def _released(self, entry: ExpertEntry) -> None:
        with self._changed:
            entry.active -= 1
            entry.last_used = time.time()
            self._leases -= 1
            self._changed.notify_all()
            if not entry.active and not self._is_current(entry):
                self._background.start(partial(self._close_removed, [entry]))
            self._evict_soon()

    def _stepped(self, base: str, rows: int, capacity: int, seconds: float, tokens: int) -> None:
        self._events.emit(StepDone(base=base, rows=rows, capacity=capacity, seconds=seconds, tokens=tokens))

    def _became_idle(self) -> None:
        with self._changed:
            self._evict_soon()

    def _evict_soon(self) -> None:
        """Evict in another thread, if anything can be evicted: this thread has the lock, or answers requests."""
        if self.closed or self._eviction_wanted:
            return
        self._trim_prefixes()
        if self._limits.next_eviction(self._known(), self._bases) is not None:
            self._eviction_wanted = True
            self._background.start(self._evict_as_wanted)

    def _trim_prefixes(self) -> None:
        """Shrink the prefix caches if memory exceeds the limit."""
        for base, limit in self._limits.prefix_limits(self._known(), self._bases).items():
            base.engine.prefixes.shrink(limit)

    def _evict_as_wanted(self) -> None:
        self._eviction_wanted = False
        self.evict()

    def _close_removed(self, entries: list[ExpertEntry], reason: _FreeReason = "unused") -> None:
        """Close the experts of removed entries that are not in use, then bases without experts."""
        closing: list[Expert] = []
        with self._changed:
            for entry in entries:
                if entry.active:
                    continue
                self._draining.discard(entry)
                if entry.expert is not None:
                    self._deferred.add(
                        ExpertUnloaded(
                            expert=entry.name, base=entry.base, digest=entry.digest, bytes=entry.nbytes
                        )
                    )
                    closing.append(entry.take())
            needed = {entry.base_sha256 for entry in self._known()}
            bases = [base for base in self._bases if base.config.sha256 not in needed]
            for base in bases:
                self._drop_base(base, reason)
        for expert in closing:
            expert.close()
        for base in bases:
            BASES.release(base)
        self._deferred.emit()

    def _drop_base(self, base: Base, reason: EvictionReason | _FreeReason) -> None:
        self._bases.pop(base)()
        self._deferred.add(
            BaseFreed(base=base.config.name, digest=base.config.sha256, bytes=base.nbytes, reason=reason)
        )

    def _known(self) -> list[ExpertEntry]:
        return [*self._entries.values(), *self._draining]

    def _is_current(self, entry: ExpertEntry) -> bool:
        return self._entries.get(entry.name) is entry

    def _require_open(self) -> None:
        if self.closed:
            raise InferenceError("the manager is closed: make another one")
