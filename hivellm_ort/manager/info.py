"""Descriptions of a manager's experts and bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hivellm_ort.integrity import Verdict
from hivellm_ort.serving.base import Base

__all__ = ["ExpertInfo", "base_stats"]


@dataclass(frozen=True)
class ExpertInfo:
    """Describes an expert of a manager.

    Attributes:
        name: The name under which it was loaded.
        package: Name in its manifest.
        version: Version in its manifest.
        base: Short name of the base model.
        base_sha256: Digest of the base bundle. Experts with the same digest share one session.
        digest: Digest of the prepared adapter; empty if it is merged into the base.
        verdict: The result of checking its signature.
        kind: Adapter kind; `merged` if it is merged into the base.
        rank: Adapter rank; 0 if merged.
        adapter_bytes: Bytes of the adapter's weights in memory; 0 while it is evicted.
        loaded: Whether it is in memory. An evicted expert is loaded again with its next request.
        pins: Number of pins. A pinned expert is never evicted.
        active: Number of waiting and running requests.
        hits: Number of requests so far.
        last_used: Time of the last request or load, as of `time.time()`.
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
    """Return the memory use of a base in bytes, and its numbers of rows and requests."""
    return {
        "name": base.config.name,
        "sha256": base.config.sha256,
        "provider": base.engine.provider,
        "precision": base.config.precision,
        "context": base.config.context,
        "bytes": base.nbytes,
        "key_value_bytes": base.scheduler.nbytes,
        "prefix_bytes": base.engine.prefixes.nbytes,
        "rows": base.scheduler.rows,
        "active": base.scheduler.active,
        "queued": base.scheduler.queued,
    }
