"""The entry of an expert in a manager, in memory or evicted, and the leases of its requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hivellm_ort.errors import LoadError
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Verdict
from hivellm_ort.manager.info import ExpertInfo
from hivellm_ort.package.manifest import ExpertManifest

__all__ = ["ExpertEntry", "Lease"]


@dataclass(eq=False)
class ExpertEntry:
    """A package that was loaded under a name. A replacement under the same name has an entry of its own.

    Attributes:
        name: The name.
        load: Loads the package.
        manifest: Its manifest.
        verdict: The result of checking its signature.
        base: Short name of its base.
        base_sha256: Digest of its base.
        digest: Digest of its adapter; empty if the adapter is merged.
        kind: Adapter kind.
        rank: Adapter rank.
        seconds: Seconds that the last load took.
        expert: The expert; None while it is evicted.
        pins: Number of pins.
        active: Number of current leases.
        hits: Number of requests so far.
        last_used: Time of the last use, as of `time.time()`.
        load_lock: Held while the expert is loaded again.
    """

    name: str
    load: Callable[[], Expert]
    manifest: ExpertManifest
    verdict: Verdict
    base: str
    base_sha256: str
    digest: str
    kind: str
    rank: int
    seconds: float
    expert: Expert | None
    pins: int = 0
    active: int = 0
    hits: int = 0
    last_used: float = field(default_factory=time.time)
    load_lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def loaded(cls, name: str, load: Callable[[], Expert]) -> ExpertEntry:
        """Load an expert and return its entry. Raises what `load` raises."""
        begin = time.perf_counter()
        expert = load()
        adapter = expert.adapter
        return cls(
            name=name,
            load=load,
            manifest=expert.manifest,
            verdict=expert.verdict,
            base=expert.base.name,
            base_sha256=expert.base.sha256,
            digest=adapter.digest if adapter else "",
            kind=adapter.kind if adapter else "merged",
            rank=adapter.rank if adapter else 0,
            seconds=time.perf_counter() - begin,
            expert=expert,
        )

    def take(self) -> Expert:
        """Return the expert and forget it. The caller must close it."""
        expert, self.expert = self.expert, None
        if expert is None:
            raise LookupError(f"{self.name!r} is not in memory")
        return expert

    def load_again(self) -> Expert:
        """Load the expert of an evicted entry and return it. The entry itself does not change.

        Raises:
            LoadError: The package cannot be loaded again, or was changed.
        """
        begin = time.perf_counter()
        expert = self.load()
        digest = expert.adapter.digest if expert.adapter else ""
        if (expert.manifest, digest, expert.base.sha256) != (self.manifest, self.digest, self.base_sha256):
            expert.close()
            raise LoadError(
                f"the package of {self.name!r} was changed since it was loaded: load it under this name with "
                "replace=True"
            )
        self.seconds = time.perf_counter() - begin
        return expert

    @property
    def nbytes(self) -> int:
        """Bytes of its adapter in memory."""
        expert = self.expert  # read once: another thread may evict it
        adapter = expert.adapter if expert is not None else None
        return adapter.nbytes if adapter is not None else 0

    def info(self) -> ExpertInfo:
        """Describe the entry."""
        return ExpertInfo(
            name=self.name,
            package=self.manifest.name,
            version=self.manifest.version,
            base=self.base,
            base_sha256=self.base_sha256,
            digest=self.digest,
            verdict=self.verdict,
            kind=self.kind,
            rank=self.rank,
            adapter_bytes=self.nbytes,
            loaded=self.expert is not None,
            pins=self.pins,
            active=self.active,
            hits=self.hits,
            last_used=self.last_used,
        )


class Lease:
    """Keeps an expert in memory until `release`. Thread-safe; `release` may be called more than once."""

    def __init__(self, entry: ExpertEntry, expert: Expert, released: Callable[[ExpertEntry], None]):
        self.entry = entry
        self.expert = expert
        self._released: Callable[[ExpertEntry], None] | None = released
        self._lock = threading.Lock()

    def release(self) -> None:
        """Allow the expert to be evicted again."""
        with self._lock:
            released, self._released = self._released, None
        if released is not None:
            released(self.entry)
