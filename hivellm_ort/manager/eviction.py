"""Decides which adapter or base is evicted next if memory exceeds a limit."""

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
    """The limits of memory use.

    Attributes:
        max_experts: Most experts; None for no limit.
        max_bytes: Most bytes of bases, adapters and caches; None for no limit.

    Raises:
        OptionTypeError: A limit is not an integer.
        OptionError: A limit is below 1.
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
        """Return a smaller size for the prefix cache of each base that must shrink it. Changes nothing."""
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
        """Return what to evict next and why; None if memory is within the limits or nothing can be evicted.

        Nothing is changed.

        Args:
            entries: All entries, also removed ones that are still in use.
            bases: All bases.
            keep: An entry that must not be evicted.
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
        """Return the bytes above the limit; 0 or less if memory is within it."""
        if self.max_bytes is None:
            return 0
        used = sum(base.nbytes + base.cache_bytes for base in bases) + sum(entry.nbytes for entry in entries)
        return used - self.max_bytes


def _last_used(base: Base, entries: Collection[ExpertEntry]) -> float:
    return max((entry.last_used for entry in entries if entry.base_sha256 == base.config.sha256), default=0.0)
