"""An expert that a manager knows, in memory or evicted, and the leases of those who use it."""

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
    """A package that was loaded under a name. Another package under that name has another entry.

    Attributes:
        name: the name.
        load: loads the package.
        manifest: its manifest.
        verdict: what its signature is worth.
        base: short name of its base.
        base_sha256: digest of its base.
        digest: of its adapter; empty where it is merged.
        kind: adapter kind.
        rank: adapter rank.
        seconds: how long loading it took.
        expert: the expert while it is in memory.
        pins: how often it is pinned.
        active: leases that are out.
        hits: leases so far.
        last_used: `time.time()`.
        load_lock: held while it is loaded again.
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
        """An entry with its expert in memory. Raises what `load` raises."""
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
        """Take the expert out of memory, for the caller to close."""
        expert, self.expert = self.expert, None
        if expert is None:
            raise LookupError(f"{self.name!r} is not in memory")
        return expert

    def load_again(self) -> Expert:
        """The expert of an evicted entry, which stays as it is.

        Raises:
            LoadError: the package cannot be loaded any more, or is not the same any more.
        """
        begin = time.perf_counter()
        expert = self.load()
        digest = expert.adapter.digest if expert.adapter else ""
        if (expert.manifest, digest, expert.base.sha256) != (self.manifest, self.digest, self.base_sha256):
            expert.close()
            raise LoadError(
                f"the package of {self.name!r} was changed since it was loaded: load it under that name with "
                "replace=True"
            )
        self.seconds = time.perf_counter() - begin
        return expert

    @property
    def nbytes(self) -> int:
        """Memory of its adapter."""
        expert = self.expert  # read once: another thread may evict it
        adapter = expert.adapter if expert is not None else None
        return adapter.nbytes if adapter is not None else 0

    def info(self) -> ExpertInfo:
        """As a list shows it."""
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
    """Keeps an expert in memory until `release`, which any thread may call, and more than once."""

    def __init__(self, entry: ExpertEntry, expert: Expert, released: Callable[[ExpertEntry], None]):
        self.entry = entry
        self.expert = expert
        self._released: Callable[[ExpertEntry], None] | None = released
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let it be evicted again."""
        with self._lock:
            released, self._released = self._released, None
        if released is not None:
            released(self.entry)
