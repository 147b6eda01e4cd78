"""Any damage to a package gives a typed error, or a load that is whole and in place."""

# The expected value comes first.

from __future__ import annotations

import gzip
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_samples import BASE, GOOD, NOISE, entry, expert, files_under, save, tar
from store_samples import assert_whole, count

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.package.archive import Member, extract
from hivellm_ort.package.store import Store

EXAMPLES = count("HIVELLM_FUZZ_EXAMPLES", 300)

Valid = tuple[bytes, tuple[Member, ...]]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Valid:
    """A whole small package, and its members."""
    folder = tmp_path_factory.mktemp("valid")
    package = expert(folder / "p", base=BASE, adapter=NOISE[:700])
    return package.read_bytes(), Store(folder / "store").unpack(package).members


@st.composite
def _damage(draw: st.DrawFn, length: int) -> tuple[int, int, bytes]:
    """A place, how many bytes go, and what comes instead."""
    start = draw(st.integers(0, length))
    kind = draw(st.sampled_from(["change", "cut", "insert", "shorten"]))
    if kind == "shorten":
        return start, length - start, b""
    gone = 0 if kind == "insert" else draw(st.integers(1, 16))
    size = 0 if kind == "cut" else gone or draw(st.integers(1, 16))
    return start, gone, draw(st.binary(min_size=size, max_size=size))


def _damaged(data: bytes, damages: list[tuple[int, int, bytes]]) -> bytes:
    for start, gone, piece in damages:
        data = data[:start] + piece + data[start + gone :]
    return data


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damaged_package(valid: Valid, data: st.DataObject) -> None:
    """Damage to a package's bytes gives a typed error and an empty store, or the same load."""
    whole, members = valid
    damages = data.draw(st.lists(_damage(len(whole)), min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        found = _load(Path(folder), _damaged(whole, damages))
    assert found in (None, members)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damaged_contents(valid: Valid, data: st.DataObject) -> None:
    """Damage under an intact gzip gives a typed error and an empty store, or a load that is whole."""
    whole = bytearray(gzip.decompress(valid[0]))
    damages = data.draw(st.lists(_damage(len(whole)), min_size=1, max_size=3))
    changed = bytearray(_damaged(bytes(whole), damages))
    if data.draw(st.booleans()):
        _repair_checksums(changed)
    with tempfile.TemporaryDirectory() as folder:
        _load(Path(folder), gzip.compress(changed, compresslevel=1))


def _load(folder: Path, data: bytes) -> tuple[Member, ...] | None:
    """Load what may be a package; returns its members, or None where it was refused."""
    package, store = folder / "p", Store(folder / "store")
    package.write_bytes(data)
    try:
        found = store.unpack(package).members
    except LoadError:
        found = None
        left = [path for path in store.root.rglob("*") if path.is_file()]
        assert {".lock"} == {path.name for path in left}
    assert_whole(store.root)
    assert ["p", "store"] == sorted(path.name for path in folder.iterdir())
    return found


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damaged_tar(data: st.DataObject) -> None:
    """Any damage to a tar gives a typed error, or files that tarfile reads the same, where it reads them."""
    whole = bytearray(
        tar(GOOD, entry("\u00e9/" + "n" * 110, b"12"), entry("./d/", type=b"5"), entry("b", NOISE[:600]))
        if data.draw(st.booleans())
        else tar(GOOD, entry("l" * 150, b"12"), entry("b", NOISE[:600]), GOOD, form=tarfile.GNU_FORMAT)
    )
    for _ in range(data.draw(st.integers(0, 3))):
        position = data.draw(st.integers(0, 6000))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        whole[position : position + len(piece)] = piece
    if data.draw(st.booleans()):
        _repair_checksums(whole)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package = save(folder / "p", bytes(whole))
        try:
            contents = extract(package, folder / "out")
        except IntegrityError:
            assert {} == files_under(folder / "out")
        else:
            assert sorted(member.name for member in contents.members) == sorted(files_under(folder / "out"))
            assert _by_tarfile(package) in (None, files_under(folder / "out"))
        assert ["out", "p"] == sorted(path.name for path in folder.iterdir())


def _by_tarfile(package: Path) -> dict[str, bytes] | None:
    """The files of an archive as the standard library reads them, None where it does not."""
    files = {}
    try:
        with tarfile.open(package) as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                if file is not None:
                    files[info.name.removeprefix("./")] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return None
    return files


def _repair_checksums(data: bytearray) -> None:
    """Make every block with a header's magic a valid header again."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
