"""Hostile and damaged archives are refused with a typed error and leave nothing behind."""

# The expected value comes first.

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import pytest
from hostile_archives import BAD_FILES, BAD_NAMES, BAD_TARS
from package_samples import GOOD, NOISE, entry, save, tar

from hivellm_ort.errors import IntegrityError
from hivellm_ort.package.archive import Limits, extract


def _refused(package: Path, destination: Path, *, limits: Limits | None = None) -> IntegrityError:
    begin = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        extract(package, destination, limits=limits or Limits())
    assert 5 > time.process_time() - begin
    assert [] == list(destination.iterdir())
    return caught.value


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_refuses_name(tmp_path: Path, name: str, form: int) -> None:
    """A name that some platform cannot have, or that leads elsewhere, is refused after good members."""
    package = save(tmp_path / "p", tar(GOOD, entry(name, b"1"), form=form))
    _refused(package, tmp_path / "out")
    assert ["out", "p"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("data", BAD_TARS.values(), ids=BAD_TARS)
def test_refuses_tar(tmp_path: Path, data: bytes) -> None:
    """A tar is refused if it has anything but plain files, or if readers could read it differently."""
    _refused(save(tmp_path / "p", data), tmp_path / "out")


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES)
def test_damaged_file(tmp_path: Path, data: bytes) -> None:
    """A file that is no whole tar.gz is called damaged, or another kind of file."""
    package = tmp_path / "p"
    package.write_bytes(data)
    message = str(_refused(package, tmp_path / "out")).removeprefix(str(package))
    assert message.startswith((": the archive is damaged: ", ": the file is not a package but "))


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(max_members=2), "max_members"),
        (Limits(max_member_bytes=2999), "max_member_bytes"),
        (Limits(max_total_bytes=6001), "max_total_bytes"),
    ],
)
@pytest.mark.parametrize("name", ["b", "b.bin"], ids=["kept", "skipped"])
def test_limits(tmp_path: Path, limits: Limits, word: str, name: str) -> None:
    """Each limit refuses an archive just beyond it, by a skipped member too, and its message names the limit."""
    package = save(tmp_path / "p", tar(GOOD, entry("a", NOISE), entry(name, NOISE)))
    assert word in str(_refused(package, tmp_path / "out", limits=limits))


def test_folders_and_repeats_count(tmp_path: Path) -> None:
    """Folders count as members, and a repeated member's bytes count again."""
    folders = save(tmp_path / "f", tar(GOOD, *(entry(f"d{n}/", type=tarfile.DIRTYPE) for n in range(3))))
    assert "max_members" in str(_refused(folders, tmp_path / "out-f", limits=Limits(max_members=3)))
    repeats = save(tmp_path / "r", tar(*[entry("a", NOISE)] * 3))
    assert "max_total" in str(_refused(repeats, tmp_path / "out-r", limits=Limits(max_total_bytes=8999)))


def test_at_the_limits(tmp_path: Path) -> None:
    """An archive exactly at its limits is accepted."""
    package = save(tmp_path / "p", tar(GOOD, entry("a", NOISE), entry("b", NOISE)))
    limits = Limits(max_members=3, max_member_bytes=3000, max_total_bytes=6002)
    assert 3 == len(extract(package, tmp_path / "out", limits=limits).members)


@pytest.mark.parametrize(
    "data",
    [
        tar(entry("zeros", bytes(64 << 20))),
        tar(entry("zeros.bin", bytes(64 << 20))),
        tar(GOOD) + bytes(64 << 20),
    ],
    ids=["member", "skipped member", "tail"],
)
def test_bomb(tmp_path: Path, data: bytes) -> None:
    """64 MiB of zeros in 64 KiB are refused, wherever they are."""
    _refused(save(tmp_path / "p", data), tmp_path / "out")


def test_zeros_after_the_end(tmp_path: Path) -> None:
    """Padding after the end is accepted up to 1 MiB, whatever the ratio allows."""
    limits = Limits(max_ratio=10_000)
    whole = tar(GOOD)
    assert 1 == len(extract(save(tmp_path / "p", whole + bytes(1_000_000)), tmp_path / "out").members)
    _refused(save(tmp_path / "q", whole + bytes(3 << 20)), tmp_path / "out-q", limits=limits)


def test_small_members_may_compress_well(tmp_path: Path) -> None:
    """The ratio does not count below 1 MiB of output."""
    package = save(tmp_path / "p", tar(entry("zeros", bytes(1_000_000))))
    assert 1_000_000 == extract(package, tmp_path / "out", limits=Limits(max_ratio=2)).members[0].size


def test_message_names_package_and_member(tmp_path: Path) -> None:
    """An error names the package as the user did and shows a hostile name escaped and cut."""
    package = save(tmp_path / "p.expert", tar(GOOD, entry("\x1b[2J" + "x" * 200, b"1")))
    message = str(_refused(package, tmp_path / "out"))
    assert message.startswith(f"{package}: member '\\x1b[2Jxxx")
    assert len(str(package)) + 250 > len(message)
