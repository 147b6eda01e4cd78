"""What leaves memory next where there are too many experts or too many bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.manager.slots import Slot
from hivellm_ort.observability import EvictionReason
from hivellm_ort.serving.base import Base

__all__ = ["MemoryLimits"]


@dataclass(frozen=True)
class MemoryLimits:
    """How much may be in memory.

    Attributes:
        max_experts: most experts; None for any number.
        max_bytes: most bytes of bases, adapters and caches; None for any number.

    Raises:
        OptionTypeError: a limit is no integer.
        OptionError: one is below 1.
    """

    max_experts: int | None
    max_bytes: int | None

    def __post_init__(self) -> None:
        for name, limit in (("max_loaded_experts", self.max_experts), ("memory_budget", self.max_bytes)):
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise OptionTypeError(f"{name} is {type(limit).__name__}: pass a whole number (int), or None")
            if limit < 1:
                raise OptionError(f"{name} is {limit!r}: it must be an integer from 1, or None")

    def prefix_limits(self, slots: Collection[Slot], bases: Collection[Base]) -> dict[Base, int]:
        """How many bytes of prefixes bases may keep, for those that must keep fewer than they do. Only looks."""
        limits: dict[Base, int] = {}
        over = self._excess(slots, bases)
        for base in bases:
            kept = base.engine.prefixes.nbytes
            if over > 0 and kept:
                limits[base] = max(kept - over, 0)
                over -= kept - limits[base]
        return limits

    def next_eviction(
        self, slots: Collection[Slot], bases: Collection[Base], keep: Slot | None = None
    ) -> tuple[Slot | Base, EvictionReason] | None:
        """What is to leave memory, and why; None where the limits hold or nothing may go. Only looks.

        Args:
            slots: all slots, those that were taken away and are still in use included.
            bases: all bases.
            keep: a slot that must not go.
        """
        loaded = [slot for slot in slots if slot.expert is not None]
        idle = [slot for slot in loaded if not slot.active and not slot.pins and slot is not keep]
        oldest = min(idle, key=lambda slot: slot.last_used, default=None)
        if self.max_experts is not None and len(loaded) > self.max_experts and oldest is not None:
            return oldest, "count"
        if self._excess(slots, bases) <= 0:
            return None
        if oldest is not None:
            return oldest, "memory"
        used = {slot.base_sha256 for slot in slots if slot.expert is not None or slot.active}
        unused = [base for base in bases if base.config.sha256 not in used]
        base = min(unused, key=lambda one: _last_used(one, slots), default=None)
        return None if base is None else (base, "memory")

    def _excess(self, slots: Collection[Slot], bases: Collection[Base]) -> int:
        """Bytes over the limit; 0 or less where it holds."""
        if self.max_bytes is None:
            return 0
        used = sum(base.nbytes + base.cache_bytes for base in bases) + sum(slot.nbytes for slot in slots)
        return used - self.max_bytes


def _last_used(base: Base, slots: Collection[Slot]) -> float:
    return max((slot.last_used for slot in slots if slot.base_sha256 == base.config.sha256), default=0.0)
