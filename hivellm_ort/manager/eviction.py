"""What leaves memory next where there are too many experts or too many bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.manager.entry import ExpertEntry
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

    def prefix_limits(self, entries: Collection[ExpertEntry], bases: Collection[Base]) -> dict[Base, int]:
        """How many bytes of prefixes bases may keep, for those that must keep fewer than they do. Only looks."""
        limits: dict[Base, int] = {}
        over = self._excess(entries, bases)
        for base in bases:
            kept = base.engine.prefixes.nbytes
            if over > 0 and kept:
                limits[base] = max(kept - over, 0)
                over -= kept - limits[base]
        return limits

    def next_eviction(
        self, entries: Collection[ExpertEntry], bases: Collection[Base], keep: ExpertEntry | None = None
    ) -> tuple[ExpertEntry | Base, EvictionReason] | None:
        """What is to leave memory, and why; None where the limits hold or nothing may go. Only looks.

        Args:
            entries: all entries, those that were taken away and are still in use included.
            bases: all bases.
            keep: an entry that must not go.
        """
        loaded = [entry for entry in entries if entry.expert is not None]
        idle = [entry for entry in loaded if not entry.active and not entry.pins and entry is not keep]
        oldest = min(idle, key=lambda entry: entry.last_used, default=None)
        if self.max_experts is not None and len(loaded) > self.max_experts and oldest is not None:
            return oldest, "count"
        if self._excess(entries, bases) <= 0:
            return None
        if oldest is not None:
            return oldest, "memory"
        used = {entry.base_sha256 for entry in entries if entry.expert is not None or entry.active}
        unused = [base for base in bases if base.config.sha256 not in used]
        base = min(unused, key=lambda one: _last_used(one, entries), default=None)
        return None if base is None else (base, "memory")

    def _excess(self, entries: Collection[ExpertEntry], bases: Collection[Base]) -> int:
        """Bytes over the limit; 0 or less where it holds."""
        if self.max_bytes is None:
            return 0
        used = sum(base.nbytes + base.cache_bytes for base in bases) + sum(entry.nbytes for entry in entries)
        return used - self.max_bytes


def _last_used(base: Base, entries: Collection[ExpertEntry]) -> float:
    return max((entry.last_used for entry in entries if entry.base_sha256 == base.config.sha256), default=0.0)
