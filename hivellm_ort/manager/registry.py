"""Which experts are in memory: loaded when they are needed, evicted when there are too many or too much."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from hivellm_ort.errors import InferenceError, LoadError, OptionError, UnknownExpertError
from hivellm_ort.expert import Expert
from hivellm_ort.forking import Home
from hivellm_ort.manager.eviction import MemoryLimits
from hivellm_ort.manager.info import ExpertInfo, base_stats
from hivellm_ort.manager.pending import PendingEvents
from hivellm_ort.manager.slots import Lease, Slot
from hivellm_ort.manager.workers import Workers
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

_Gone = Literal["unused", "closed"]


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
        self._pending = PendingEvents(events)
        self._changed = threading.Condition(threading.RLock())
        self._slots: dict[str, Slot] = {}
        self._leaving: set[Slot] = set()  # replaced or unloaded, and still in use
        self._bases: dict[Base, Callable[[], None]] = {}  # and what takes back the listeners
        self._leases = 0
        self._workers = Workers(self._changed)
        self._room_wanted = False

    def slots(self) -> list[Slot]:
        """All slots, in the order of their names' first loading."""
        with self._changed:
            return list(self._slots.values())

    def bases(self) -> list[Base]:
        """The bases in memory."""
        with self._changed:
            return list(self._bases)

    def infos(self) -> list[ExpertInfo]:
        """All slots as a list shows them, all of one moment."""
        with self._changed:
            return [slot.info() for slot in self._slots.values()]

    def stats(self) -> dict[str, Any]:
        """See `ExpertManager.stats`."""
        with self._changed:
            slots = list(self._slots.values())
            bases = [base_stats(base) for base in self._bases]
            adapters = sum(slot.nbytes for slot in self._present())
            parts = ("bytes", "key_value_bytes", "prefix_bytes")
            return {
                "experts": len(slots),
                "loaded_experts": sum(slot.expert is not None for slot in slots),
                "max_loaded_experts": self._limits.max_experts,
                "bytes": adapters + sum(base[name] for base in bases for name in parts),
                "memory_budget": self._limits.max_bytes,
                "adapter_bytes": adapters,
                "evictions": self._evictions,
                "bases": bases,
            }

    def get(self, name: str) -> Slot:
        """The slot of a name.

        Raises:
            UnknownExpertError: there is none.
        """
        with self._changed:
            try:
                return self._slots[name]
            except KeyError:
                known = ", ".join(map(repr, self._slots)) or "none"
                raise UnknownExpertError(f"no expert is loaded as {name!r}; loaded are: {known}") from None

    def add(
        self, slot: Slot, *, replace: bool, check: Callable[[Slot | None, list[ExpertManifest]], None]
    ) -> None:
        """Put a slot in the place of its name.

        Args:
            slot: with its expert in memory, which is closed if this fails.
            replace: whether the name may be in use.
            check: refuses the slot in the place of another, and beside the other manifests, by raising.

        Raises:
            LoadError: the name is in use, or `check` refuses.
        """
        try:
            with self._changed:
                old = self._put(slot, replace, check)
        except BaseException:
            if slot.expert is not None:
                slot.expert.close()
            raise
        if old is not None:
            self._retire([old])
        self.make_room(keep=slot)

    def _put(
        self, slot: Slot, replace: bool, check: Callable[[Slot | None, list[ExpertManifest]], None]
    ) -> Slot | None:
        self._require_open()
        old = self._slots.get(slot.name)
        if old is not None and not replace:
            raise LoadError(
                f"an expert is loaded as {slot.name!r} already: give replace=True, unload it first, or choose "
                "another name"
            )
        check(old, [other.manifest for other in self._slots.values() if other is not old])
        if old is not None:
            slot.pins = old.pins
            self._leaving.add(old)
        self._slots[slot.name] = slot
        self._arrived(slot)
        return old

    def remove(self, name: str, check: Callable[[Slot, list[ExpertManifest]], None]) -> None:
        """Take a slot away; requests that have its expert keep it until they end.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: `check` refuses.
        """
        with self._changed:
            slot = self.get(name)
            check(slot, [other.manifest for other in self._slots.values() if other is not slot])
            del self._slots[name]
            self._leaving.add(slot)
        self._retire([slot])

    def discard(self, slot: Slot) -> None:
        """Take a slot away if it is there still."""
        with self._changed:
            if not self._is_current(slot):
                return
            del self._slots[slot.name]
            self._leaving.add(slot)
        self._retire([slot])

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
                slot = self.get(name)
                slot.active += 1  # from now on it is not evicted
                slot.hits += hits
                self._leases += 1
            try:
                expert = slot.expert or self._load_again(slot)
            except BaseException:
                self._give_back(slot)
                raise
            if expert is not None:
                return Lease(slot, expert, self._give_back)
            self._give_back(slot)

    def lease_any(self) -> Lease:
        """Any expert, for requests to the base that all of them share.

        Raises:
            UnknownExpertError: there is none that has an adapter beside its base.
            LoadError: they are of several bases.
        """
        while True:
            slots = [slot for slot in self.slots() if slot.digest]
            bases = {slot.base_sha256: slot.base for slot in slots}
            if len(bases) > 1:
                names = ", ".join(map(repr, bases.values()))
                raise LoadError(
                    f"the experts are of several bases ({names}), so there is no one to ask: name an expert"
                )
            if not slots:
                raise UnknownExpertError(
                    "no expert is loaded that has a base model beside it (a merged one has none): load one first"
                )
            loaded = next((slot for slot in slots if slot.expert is not None), slots[0])
            with contextlib.suppress(UnknownExpertError):  # unloaded meanwhile
                return self.lease(loaded.name, hits=0)

    def pin(self, name: str) -> None:
        """Load an expert if it was evicted, and add a pin. Raises as `lease`."""
        while True:
            lease = self.lease(name, hits=0)
            with self._changed:
                current = self._is_current(lease.slot)
                lease.slot.pins += current
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
            slot = self.get(name)
            if not slot.pins:
                raise OptionError(f"{name!r} is not pinned")
            slot.pins -= 1
        self.make_room()

    def close(self) -> None:
        """Take everything away, after what is in use has been given back."""
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: not self._leases and self._workers.idle)
            slots = list(self._slots.values())
            self._slots.clear()
            self._leaving.update(slots)
        self._retire(slots, gone="closed")

    def make_room(self, keep: Slot | None = None) -> None:
        """Evict until the limits hold, or nothing is left that may go.

        Args:
            keep: a slot that was loaded just now and is not in use yet.
        """
        while True:
            with self._changed:
                self._trim_prefixes()
                found = self._limits.next_eviction(self._present(), self._bases, keep)
                if found is None:
                    break
                one, reason = found
                if isinstance(one, Slot):
                    self._evictions += 1
                    size, expert = one.nbytes, one.take()
                    self._pending.add(
                        ExpertEvicted(
                            expert=one.name, base=one.base, digest=one.digest, bytes=size, reason=reason
                        )
                    )
                else:
                    self._let_go(one, reason)
            if isinstance(one, Slot):
                expert.close()
            else:
                BASES.release(one)
        self._pending.emit()

    def _load_again(self, slot: Slot) -> Expert | None:
        """The expert of an evicted slot; None where the slot was replaced or unloaded meanwhile."""
        with slot.loading:
            with self._changed:
                if slot.expert is not None or not self._is_current(slot):
                    return slot.expert
            expert = slot.load_again()
            with self._changed:
                current = not self.closed and self._is_current(slot)
                if current:
                    slot.expert = expert
                    self._arrived(slot)
        if not current:
            expert.close()
            return None
        self.make_room()
        return expert

    def _arrived(self, slot: Slot) -> None:
        """Keep the base of an expert that is in memory now, whatever becomes of the expert."""
        expert = slot.expert
        if expert is None:
            return
        base = expert.shared_base
        if base not in self._bases:
            BASES.hold(base)
            self._bases[base] = base.scheduler.follow(
                partial(self._stepped, base.config.name), self._became_idle
            )
            self._pending.add(
                BaseLoaded(base=slot.base, digest=slot.base_sha256, bytes=base.nbytes, seconds=slot.seconds)
            )
        self._pending.add(
            ExpertLoaded(expert=slot.name, base=slot.base, digest=slot.digest, bytes=slot.nbytes)
        )

    def _give_back(self, slot: Slot) -> None:
        with self._changed:
            slot.active -= 1
            slot.last_used = time.time()
            self._leases -= 1
            self._changed.notify_all()
            if not slot.active and not self._is_current(slot):
                self._workers.do(partial(self._retire, [slot]))
            self._want_room()

    def _stepped(self, base: str, rows: int, capacity: int, seconds: float, tokens: int) -> None:
        self._events.emit(StepDone(base=base, rows=rows, capacity=capacity, seconds=seconds, tokens=tokens))

    def _became_idle(self) -> None:
        with self._changed:
            self._want_room()

    def _want_room(self) -> None:
        """Have room made soon, if there is something to be gained."""
        if self.closed or self._room_wanted:
            return
        self._trim_prefixes()
        if self._limits.next_eviction(self._present(), self._bases) is not None:
            self._room_wanted = True
            self._workers.do(self._make_wanted_room)

    def _trim_prefixes(self) -> None:
        """Drop kept prefixes where there are too many bytes."""
        for base, limit in self._limits.prefix_limits(self._present(), self._bases).items():
            base.engine.prefixes.shrink(limit)

    def _make_wanted_room(self) -> None:
        self._room_wanted = False
        self.make_room()

    def _retire(self, slots: list[Slot], gone: _Gone = "unused") -> None:
        """Close the experts of slots that were taken away and are not in use, then bases that nobody needs."""
        closing: list[Expert] = []
        with self._changed:
            for slot in slots:
                if slot.active:
                    continue
                self._leaving.discard(slot)
                if slot.expert is not None:
                    self._pending.add(
                        ExpertUnloaded(
                            expert=slot.name, base=slot.base, digest=slot.digest, bytes=slot.nbytes
                        )
                    )
                    closing.append(slot.take())
            needed = {slot.base_sha256 for slot in self._present()}
            bases = [base for base in self._bases if base.config.sha256 not in needed]
            for base in bases:
                self._let_go(base, gone)
        for expert in closing:
            expert.close()
        for base in bases:
            BASES.release(base)
        self._pending.emit()

    def _let_go(self, base: Base, reason: EvictionReason | _Gone) -> None:
        self._bases.pop(base)()
        self._pending.add(
            BaseFreed(base=base.config.name, digest=base.config.sha256, bytes=base.nbytes, reason=reason)
        )

    def _present(self) -> list[Slot]:
        return [*self._slots.values(), *self._leaving]

    def _is_current(self, slot: Slot) -> bool:
        return self._slots.get(slot.name) is slot

    def _require_open(self) -> None:
        if self.closed:
            raise InferenceError("the manager is closed: make another one")
