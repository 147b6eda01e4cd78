"""Experts and bases as a manager shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hivellm_ort.integrity import Verdict
from hivellm_ort.serving.base import Base

__all__ = ["ExpertInfo", "base_stats"]


@dataclass(frozen=True)
class ExpertInfo:
    """An expert that a manager knows.

    Attributes:
        name: the name it was loaded under.
        package: name of its manifest.
        version: version of its manifest.
        base: short name of the base model.
        base_sha256: digest of the base bundle; equal digests share one session.
        digest: of the prepared adapter; empty where it is merged into the base.
        verdict: what its signature is worth.
        kind: adapter kind, `merged` where it is folded into the base.
        rank: adapter rank, 0 where merged.
        adapter_bytes: memory of the adapter's weights; 0 while it is evicted.
        loaded: whether it is in memory; an evicted one is loaded again with its next request.
        pins: how often it is pinned; a pinned one is never evicted.
        active: requests that wait or are being answered.
        hits: requests so far.
        last_used: `time.time()` of the last request or load.
    """

    name: str
    package: str
    version: str
    base: str
    base_sha256: str
    digest: str
    verdict: Verdict
    kind: str
    rank: int
    adapter_bytes: int
    loaded: bool
    pins: int
    active: int
    hits: int
    last_used: float


def base_stats(base: Base) -> dict[str, Any]:
    """What a base has in memory, in bytes, and what it does."""
    return {
        "name": base.config.name,
        "sha256": base.config.sha256,
        "provider": base.engine.provider,
        "context": base.config.context,
        "bytes": base.nbytes,
        "key_value_bytes": base.scheduler.nbytes,
        "prefix_bytes": base.engine.prefixes.nbytes,
        "rows": base.scheduler.rows,
        "active": base.scheduler.active,
        "queued": base.scheduler.queued,
    }
