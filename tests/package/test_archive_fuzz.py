"""Any damage to an archive gives a typed error, or files that are whole and in place."""

# The expected value comes first.

from __future__ import annotations

import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from package_samples import GOOD, NOISE, entry, files_under, save, tar

from hivellm_ort.errors import IntegrityError
from hivellm_ort.package.archive import extract, write


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, bytes]]:
    """A small package and its files."""
    package = tmp_path_factory.mktemp("valid") / "p"
    files = {"manifest.json": b'{"name": "x"}', "onnx/weights.bin": NOISE, "\u00e9.txt": b"long" * 100}
    write(package, list(files.items()))
    return package.read_bytes(), files


_many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_many
@given(data=st.data())
def test_mutated_package(
    tmp_path_factory: pytest.TempPathFactory, valid: tuple[bytes, dict[str, bytes]], data: st.DataObject
) -> None:
    """One changed byte of a package gives a typed error and an empty folder, or the same files."""
    whole, files = valid
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "p").write_bytes(changed)
    try:
        extract(folder / "p", folder / "out")
    except IntegrityError:
        assert {} == files_under(folder / "out")
    else:
        assert files == files_under(folder / "out")


@_many
@given(data=st.data())
def test_mutated_tar(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any damage under an intact gzip gives a typed error, or files that all lie in the destination."""
    whole = bytearray(
        tar(GOOD, entry("\u00e9/" + "n" * 110, b"12"), entry("b", NOISE[:600]))
        if data.draw(st.booleans())
        else tar(GOOD, entry("l" * 150, b"12"), entry("b", NOISE[:600]), form=tarfile.GNU_FORMAT)
    )
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, 5000))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        whole[position : position + len(piece)] = piece
    if data.draw(st.booleans()):
        _repair_checksums(whole)
    folder = tmp_path_factory.mktemp("mutated")
    package = save(folder / "p", bytes(whole))
    try:
        contents = extract(package, folder / "out")
    except IntegrityError:
        assert {} == files_under(folder / "out")
    else:
        assert sorted(member.name for member in contents.members) == sorted(files_under(folder / "out"))
    assert ["out", "p"] == sorted(path.name for path in folder.iterdir())


def _repair_checksums(data: bytearray) -> None:
    """Make every block with a header's magic a valid header again."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
