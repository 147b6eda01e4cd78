"""Which experts are in memory: loaded when they are needed, evicted when there are too many or too much."""

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
"""Refuses, by raising, an entry in the place of another (if there is one) and beside other manifests."""

CheckRemoval = Callable[[ExpertEntry, list[ExpertManifest]], None]
"""Refuses, by raising, that an entry leaves the other manifests."""

_FreeReason = Literal["unused", "closed"]


class ExpertRegistry:
    """The experts of a manager, and what of them is in memory. Safe to use from any thread.

    What is in use or pinned is never evicted, so there may be more than the limits while it is. Over the limit of
    bytes go, in this order and the least recently used first: kept prefixes, adapters, bases without adapters.

    Nothing waits while it has the lock, and nobody is told of anything: a thread that answers requests takes the lock
    too, and a listener may call what takes it.

    Args:
        max_experts: most experts in memory; None for any number.
        max_bytes: most bytes of bases, adapters and caches; None for any number.
        events: who is told.

    Attributes:
        closed: whether no more experts are given out.
        home: the process of its experts.
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
        self._draining: set[ExpertEntry] = set()  # replaced or unloaded, with requests that run
        self._bases: dict[Base, Callable[[], None]] = {}  # and what takes back the listeners
        self._leases = 0
        self._background = BackgroundWork(self._changed)
        self._eviction_wanted = False

    def entries(self) -> list[ExpertEntry]:
        """All entries, in the order of their names' first loading."""
        with self._changed:
            return list(self._entries.values())

    def bases(self) -> list[Base]:
        """The bases in memory."""
        with self._changed:
            return list(self._bases)

    def infos(self) -> list[ExpertInfo]:
        """All entries as a list shows them, all of one moment."""
        with self._changed:
            return [entry.info() for entry in self._entries.values()]

    def stats(self) -> dict[str, Any]:
        """See `ExpertManager.stats`."""
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
        """The entry of a name.

        Raises:
            UnknownExpertError: there is none.
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
            entry: with its expert in memory, which is closed if this fails.
            replace: whether the name may be in use.
            check: may refuse the entry.

        Raises:
            LoadError: the name is in use, or `check` refuses.
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
        """Take an entry away; requests that have its expert keep it until they end.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: `check` refuses.
        """
        with self._changed:
            entry = self.get(name)
            check(entry, [other.manifest for other in self._entries.values() if other is not entry])
            del self._entries[name]
            self._draining.add(entry)
        self._close_removed([entry])

    def discard(self, entry: ExpertEntry) -> None:
        """Take an entry away if it is there still."""
        with self._changed:
            if not self._is_current(entry):
                return
            del self._entries[entry.name]
            self._draining.add(entry)
        self._close_removed([entry])

    def lease(self, name: str, *, hits: int = 1) -> Lease:
        """An expert in memory, loaded again if it was evicted.

        Args:
            name: its name.
            hits: how many requests that is.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
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
        """Take away a pin.

        Raises:
            UnknownExpertError: there is none of that name.
            ValueError: there are no pins left to take away.
        """
        with self._changed:
            entry = self.get(name)
            if not entry.pins:
                raise OptionError(f"{name!r} is not pinned")
            entry.pins -= 1
        self.evict()

    def close(self) -> None:
        """Take everything away, after what is in use has been given back."""
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: not self._leases and self._background.idle)
            entries = list(self._entries.values())
            self._entries.clear()
            self._draining.update(entries)
        self._close_removed(entries, reason="closed")

    def evict(self, keep: ExpertEntry | None = None) -> None:
        """Evict until the limits hold, or nothing is left that may go.

        Args:
            keep: an entry that was loaded just now and is not in use yet.
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
        """The expert of an evicted entry; None where the entry was replaced or unloaded meanwhile."""
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
        """Keep the base of an expert that is in memory now, whatever becomes of the expert."""
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
        """Have another thread evict, if that gains something: this one has the lock, or answers requests."""
        if self.closed or self._eviction_wanted:
            return
        self._trim_prefixes()
        if self._limits.next_eviction(self._known(), self._bases) is not None:
            self._eviction_wanted = True
            self._background.start(self._evict_as_wanted)

    def _trim_prefixes(self) -> None:
        """Drop kept prefixes where there are too many bytes."""
        for base, limit in self._limits.prefix_limits(self._known(), self._bases).items():
            base.engine.prefixes.shrink(limit)

    def _evict_as_wanted(self) -> None:
        self._eviction_wanted = False
        self.evict()

    def _close_removed(self, entries: list[ExpertEntry], reason: _FreeReason = "unused") -> None:
        """Close the experts of entries that were taken away and are not in use, then bases that nobody needs."""
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
