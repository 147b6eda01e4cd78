"""Which experts are in memory: loaded when they are needed, evicted when there are too many or too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from hivellm_ort.base import BASES, Base
from hivellm_ort.errors import InferenceError, LoadError, UnknownExpertError
from hivellm_ort.manager.slots import Lease, Slot
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
from hivellm_ort.scheduler import OnStep

__all__ = ["Residents"]


class Residents:
    """The experts of a manager, and what of them is in memory. Safe to use from any thread.

    What is in use or pinned is never evicted, so there may be more than the limits while it is. Over the limit of
    bytes go, in this order and the least recently used first: kept prefixes, adapters, bases without adapters.

    Args:
        max_experts: most experts in memory; None for any number.
        max_bytes: most bytes of bases, adapters and caches; None for any number.
        events: who is told.
    """

    def __init__(self, max_experts: int | None, max_bytes: int | None, events: Events):
        for name, limit in (("max_loaded_experts", max_experts), ("memory_budget", max_bytes)):
            if limit is not None and not (isinstance(limit, int) and limit >= 1):
                raise ValueError(f"{name} is {limit!r}: it must be an integer from 1, or None")
        self.max_experts, self.max_bytes = max_experts, max_bytes
        self.evictions = 0
        self._events = events
        self._lock = threading.RLock()
        self._slots: dict[str, Slot] = {}
        self._bases: dict[Base, OnStep] = {}
        self._closed = False

    def slots(self) -> list[Slot]:
        """All slots, in the order of their names' first loading."""
        with self._lock:
            return list(self._slots.values())

    def bases(self) -> list[Base]:
        """The bases in memory."""
        with self._lock:
            return list(self._bases)

    @property
    def nbytes(self) -> int:
        """Bytes of bases, adapters and caches."""
        with self._lock:
            bases = sum(base.nbytes + base.cache_bytes for base in self._bases)
            return bases + sum(slot.nbytes for slot in self._slots.values())

    def get(self, name: str) -> Slot:
        """The slot of a name.

        Raises:
            UnknownExpertError: there is none.
        """
        with self._lock:
            try:
                return self._slots[name]
            except KeyError:
                known = ", ".join(map(repr, self._slots)) or "none"
                raise UnknownExpertError(f"no expert is loaded as {name!r}; loaded are: {known}") from None

    def add(self, slot: Slot, *, replace: bool, check: Callable[[list[ExpertManifest]], None]) -> None:
        """Put a slot in the place of its name.

        Args:
            slot: with its expert in memory, which is closed if this fails.
            replace: whether the name may be in use.
            check: refuses the slot beside the other manifests by raising.

        Raises:
            LoadError: the name is in use, or `check` refuses.
        """
        try:
            with self._lock:
                old = self._put(slot, replace, check)
        except BaseException:
            if slot.expert is not None:
                slot.expert.close()
            raise
        if old is not None:
            self._retire([old])
        self.make_room(keep=slot)

    def _put(self, slot: Slot, replace: bool, check: Callable[[list[ExpertManifest]], None]) -> Slot | None:
        self._require_open()
        old = self._slots.get(slot.name)
        if old is not None and not replace:
            raise LoadError(
                f"an expert is loaded as {slot.name!r} already: give replace=True, unload it first, or choose "
                "another name"
            )
        check([other.manifest for other in self._slots.values() if other is not old])
        self._slots[slot.name] = slot
        self._arrived(slot)
        return old

    def remove(self, name: str, check: Callable[[Slot, list[ExpertManifest]], None]) -> None:
        """Take a slot away; requests that have its expert keep it until they end.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: `check` refuses.
        """
        with self._lock:
            slot = self.get(name)
            check(slot, [other.manifest for other in self._slots.values() if other is not slot])
            del self._slots[name]
        self._retire([slot])

    def lease(self, name: str) -> Lease:
        """An expert in memory, loaded again if it was evicted.

        Raises:
            UnknownExpertError: there is none of that name.
            LoadError: it was evicted, and its package cannot be loaded any more.
        """
        while True:
            with self._lock:
                self._require_open()
                slot = self.get(name)
                if slot.expert is not None:
                    slot.active += 1
                    slot.hits += 1
                    slot.last_used = time.time()
                    return Lease(slot, slot.expert, self._give_back)
            self._reload(slot)

    def lease_any(self) -> Lease:
        """Any expert, for requests to the base that all of them share.

        Raises:
            UnknownExpertError: there is none.
            LoadError: they are of several bases.
        """
        slots = self.slots()
        bases = {slot.base_sha256: slot.base for slot in slots}
        if len(bases) > 1:
            names = ", ".join(map(repr, bases.values()))
            raise LoadError(
                f"the experts are of several bases ({names}), so there is no one to ask: name an expert"
            )
        if not slots:
            raise UnknownExpertError("no expert is loaded, and so no base: load one first")
        loaded = next((slot for slot in slots if slot.expert is not None), slots[0])
        return self.lease(loaded.name)

    def pin(self, name: str, count: int) -> None:
        """Add to the pins of a slot.

        Raises:
            UnknownExpertError: there is none of that name.
            ValueError: there are no pins left to take away.
        """
        with self._lock:
            slot = self.get(name)
            if slot.pins + count < 0:
                raise ValueError(f"{name!r} is not pinned")
            slot.pins += count
        self.make_room()

    def close(self) -> None:
        """Take everything away."""
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
            self._slots.clear()
        self._retire(slots, reason="closed")

    def make_room(self, keep: Slot | None = None) -> None:
        """Evict until the limits hold, or nothing is left that may go.

        Args:
            keep: a slot that was loaded just now and is not in use yet.
        """
        while True:
            with self._lock:
                reason = self._exceeded()
                if reason is None:
                    return
                idle = [slot for slot in self._slots.values() if self._may_go(slot, keep)]
                slot = min(idle, key=lambda one: one.last_used, default=None)
                expert = None
                if slot is not None:
                    expert, slot.expert = slot.expert, None
                    self.evictions += 1
            if slot is not None and expert is not None:
                size = expert.adapter.nbytes if expert.adapter is not None else 0
                expert.close()
                self._events.emit(
                    ExpertEvicted(
                        expert=slot.name, base=slot.base, digest=slot.digest, bytes=size, reason=reason
                    )
                )
            elif not (reason == "memory" and self._free_idle_base(reason)):
                return

    def _exceeded(self) -> EvictionReason | None:
        loaded = sum(slot.expert is not None for slot in self._slots.values())
        if self.max_experts is not None and loaded > self.max_experts:
            return "count"
        if self.max_bytes is None or self.nbytes <= self.max_bytes:
            return None
        for base in self._bases:
            kept = base.engine.prefixes.nbytes
            base.engine.prefixes.shrink(max(kept - (self.nbytes - self.max_bytes), 0))
        return "memory" if self.nbytes > self.max_bytes else None

    def _may_go(self, slot: Slot, keep: Slot | None) -> bool:
        return slot.expert is not None and not slot.active and not slot.pins and slot is not keep

    def _free_idle_base(self, reason: EvictionReason) -> bool:
        with self._lock:
            used = {slot.base_sha256 for slot in self._slots.values() if slot.expert is not None}
            base = next((one for one in self._bases if one.config.sha256 not in used), None)
            if base is not None:
                self._let_go(base)
        if base is not None:
            self._freed(base, reason)
        return base is not None

    def _reload(self, slot: Slot) -> None:
        with slot.loading:
            if slot.expert is not None:
                return
            expert = slot.load()
            with self._lock:
                current = not self._closed and self._slots.get(slot.name) is slot
                if current:
                    slot.expert = expert
                    self._arrived(slot)
            if not current:  # replaced, unloaded or closed meanwhile
                expert.close()
                return
        self.make_room(keep=slot)

    def _arrived(self, slot: Slot) -> None:
        """Keep the base of an expert that is in memory now, whatever becomes of the expert."""
        expert = slot.expert
        if expert is None:
            return
        base = expert.shared_base
        if base not in self._bases:
            BASES.hold(base)

            def on_step(rows: int, capacity: int, seconds: float, tokens: int) -> None:
                self._events.emit(
                    StepDone(base=slot.base, rows=rows, capacity=capacity, seconds=seconds, tokens=tokens)
                )

            self._bases[base] = on_step
            base.scheduler.on_step += (on_step,)
            self._events.emit(
                BaseLoaded(base=slot.base, digest=slot.base_sha256, bytes=base.nbytes, seconds=0.0)
            )
        self._events.emit(
            ExpertLoaded(expert=slot.name, base=slot.base, digest=slot.digest, bytes=slot.nbytes)
        )

    def _give_back(self, slot: Slot) -> None:
        with self._lock:
            slot.active -= 1
            slot.last_used = time.time()
            retired = self._slots.get(slot.name) is not slot
            crowded = not self._closed and self._exceeded() is not None
        # Not by the thread that answers requests: to evict may mean to wait for it.
        if retired and not slot.active:
            threading.Thread(target=self._retire, args=([slot],)).start()
        elif crowded:
            threading.Thread(target=self.make_room).start()

    def _retire(self, slots: list[Slot], reason: str = "unused") -> None:
        """Close the experts of slots that were taken away and are not in use, then bases that nobody needs."""
        for slot in slots:
            with self._lock:
                expert = None if slot.active else slot.expert
                size = slot.nbytes
                if expert is not None:
                    slot.expert = None
            if expert is not None:
                expert.close()
                self._events.emit(
                    ExpertUnloaded(expert=slot.name, base=slot.base, digest=slot.digest, bytes=size)
                )
        for base in self._unneeded():
            self._freed(base, "closed" if reason == "closed" else "unused")

    def _unneeded(self) -> Iterator[Base]:
        with self._lock:
            needed = {slot.base_sha256 for slot in self._slots.values()}
            bases = [base for base in self._bases if base.config.sha256 not in needed]
            for base in bases:
                self._let_go(base)
        yield from bases

    def _let_go(self, base: Base) -> None:
        on_step = self._bases.pop(base)
        base.scheduler.on_step = tuple(one for one in base.scheduler.on_step if one is not on_step)

    def _freed(self, base: Base, reason: str) -> None:
        BASES.release(base)
        self._events.emit(
            BaseFreed(
                base=base.config.name,
                digest=base.config.sha256,
                bytes=base.nbytes,
                reason=reason,  # type: ignore[arg-type]
            )
        )

    def _require_open(self) -> None:
        if self._closed:
            raise InferenceError("the manager is closed: make another one")
