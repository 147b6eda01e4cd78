"""Unpacking holds a few pieces in memory, whatever the archive claims."""

# The expected value comes first.

from __future__ import annotations

import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_archives import BAD_FILES, BAD_TARS
from package_samples import END, GOOD, NOISE, entry, padded, pax, raw_header, save, tar

from hivellm_ort.errors import IntegrityError
from hivellm_ort.package.archive import Limits, extract

LIMIT = 4 << 20
LIMITS = Limits(max_members=1000, max_member_bytes=LIMIT, max_total_bytes=LIMIT)


def _claims(size: int, kind: bytes = b"0") -> bytes:
    """A header that claims so many bytes, and a few of them."""
    return raw_header(b"x", size, kind) + padded(NOISE)


LARGE: dict[str, Callable[[], bytes]] = {
    "a member of zeros": lambda: tar(entry("zeros", bytes(64 << 20))),
    "a skipped member of zeros": lambda: tar(entry("zeros.bin", bytes(64 << 20))),
    "zeros after the end": lambda: tar(GOOD) + bytes(64 << 20),
    "a member at the limit, then one more": lambda: tar(entry("a", bytes(LIMIT)), entry("b", b"1")),
    "a claimed member": lambda: _claims((1 << 33) - 1),
    "a claimed extended header": lambda: _claims((1 << 33) - 1, b"x"),
    "a claimed long name": lambda: _claims((1 << 33) - 1, b"L"),
    "a pax record of many bytes": lambda: pax(("path", b"a" * LIMIT)) + raw_header(b"x") + END,
    "many members": lambda: tar(*(entry(f"{n:0200}") for n in range(1001)), form=tarfile.GNU_FORMAT),
    "many repeats": lambda: tar(*[entry("a" * 90)] * 1001),
    "many headers of nothing": lambda: pax(("comment", b"a")) * 5000,
}


def _peak(package: Path, destination: Path) -> int:
    """Bytes that Python holds at most while an archive is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            extract(package, destination, limits=LIMITS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_memory_of_a_large_archive(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """A large archive, or one that claims to be large, takes at most twice the limit."""
    assert 2 * LIMIT > _peak(save(tmp_path / "p", make()), tmp_path / "out")


def test_memory_of_the_hostile_archives(tmp_path: Path) -> None:
    """Nor does any other hostile archive; the long ones are read a byte at a time, too slow to trace."""
    peaks = {}
    for number, (name, data) in enumerate(BAD_TARS.items()):
        peaks[name] = _peak(save(tmp_path / f"t{number}", data), tmp_path / f"out-t{number}")
    for number, (name, data) in enumerate(BAD_FILES.items()):
        if len(data) > LIMIT // 2:
            continue
        package = tmp_path / f"f{number}"
        package.write_bytes(data)
        peaks[name] = _peak(package, tmp_path / f"out-f{number}")
    assert {} == {name: peak for name, peak in peaks.items() if peak >= 2 * LIMIT}
