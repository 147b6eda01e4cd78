"""What a process holds: memory, objects, open files, threads, sessions; and what grows."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnxruntime
import psutil

__all__ = ["Level", "Track", "growth", "level"]

_PROCESS = psutil.Process()
_FEW = 32  # objects that come and go without a leak: names, caches, frames
_SOME = 2  # files and threads that just end or begin


@dataclass(frozen=True)
class Level:
    """What a process holds at one moment, when garbage is collected.

    Attributes:
        rss: resident bytes, as the system tells them.
        trimmed: the same when what the C library keeps of freed memory was given back (Linux); else as `rss`.
        files: open files and sockets; handles on Windows.
        threads: threads of all kinds.
        sessions: sessions of ONNX Runtime.
        objects: objects that the garbage collector follows, by type.
    """

    rss: int
    trimmed: int
    files: int
    threads: int
    sessions: int
    objects: Counter[str]


def level() -> Level:
    """The level now; it takes a part of a second."""
    for _ in range(3):  # what a finalizer lets go of is garbage in the next round
        gc.collect()
    followed = gc.get_objects()
    # `type`, not `__class__`: some answer for another, and load it for that.
    objects = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in followed)
    sessions = sum(type(one) is onnxruntime.InferenceSession for one in followed)
    del followed
    rss = _PROCESS.memory_info().rss
    _trim()
    return Level(
        rss=rss,
        trimmed=_PROCESS.memory_info().rss,
        files=_PROCESS.num_handles() if sys.platform == "win32" else _PROCESS.num_fds(),
        threads=_PROCESS.num_threads(),
        sessions=sessions,
        objects=objects,
    )


def growth(before: Level, after: Level, operations: int, percent: float | None) -> list[str]:
    """What has grown, one line for each; none where the process is flat.

    Args:
        before: after warming up.
        after: at the end.
        operations: how many were done in between.
        percent: most change of resident memory, to either side; None for any.
    """
    found = []
    change = 100 * (after.rss / before.rss - 1)
    if percent is not None and abs(change) > percent:
        found.append(f"resident memory changed by {change:+.2f} %, from {before.rss} to {after.rss} bytes")
    for name, most in (("files", _SOME), ("threads", _SOME), ("sessions", 0)):
        one, other = getattr(before, name), getattr(after, name)
        if other > one + most:
            found.append(f"{name}: {other}, and {one} before")
    # One object of a type in ten operations is a leak; less is what caches and names do.
    most = max(_FEW, operations // 10)
    for name, count in after.objects.items():
        more = count - before.objects[name]
        if more > most:
            found.append(f"{more} more objects of {name} in {operations} operations")
    return found


@dataclass
class Track:
    """Resident memory over time.

    Attributes:
        begin: of `time.monotonic`.
        points: seconds and bytes.
        parts: seconds at which a part of the run began, and its name.
    """

    begin: float = field(default_factory=time.monotonic)
    points: list[tuple[float, int]] = field(default_factory=list)
    parts: list[tuple[float, str]] = field(default_factory=list)

    def part(self, name: str) -> None:
        """A part of the run begins."""
        self.parts.append((time.monotonic() - self.begin, name))

    def sample(self) -> None:
        """Note the resident memory of now, as it is."""
        self.points.append((time.monotonic() - self.begin, _PROCESS.memory_info().rss))

    def as_json(self) -> dict[str, Any]:
        """As plain types."""
        return {"points": self.points, "parts": self.parts}


def _trim() -> None:
    """Have the C library give back what it keeps of freed memory, where it can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
