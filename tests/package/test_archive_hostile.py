"""Hostile and damaged archives are refused with a typed error and leave nothing behind."""

# The expected value comes first.

from __future__ import annotations

import gzip
import tarfile
import unicodedata
from pathlib import Path

import pytest
from package_samples import END, GOOD, NOISE, entry, padded, pax, raw_header, save, tar

from hivellm_ort.errors import IntegrityError
from hivellm_ort.package.archive import Limits, extract

BAD_NAMES = {
    "absolute": "/etc/passwd",
    "two slashes": "//host/share",
    "parent": "../x",
    "parent inside": "a/../../x",
    "dot": "a/./b",
    "dot twice": "././a",
    "empty part": "a//b",
    "empty": "",
    "drive": "C:x",
    "drive and slash": "C:/x",
    "unc": "\\\\host\\share\\x",
    "backslash": "a\\b",
    "colon": "a:stream",
    "control": "a\nb",
    "escape": "a\x1bb",
    "delete": "a\x7fb",
    "c1 control": "a\x85b",
    "right to left": "a\u202etxt",
    "zero width": "a\u200bb",
    "line separator": "a\u2028b",
    "less": "a<b",
    "greater": "a>b",
    "quote": 'a"b',
    "pipe": "a|b",
    "question": "a?b",
    "star": "a*b",
    "device": "NUL",
    "device in lower case": "aux",
    "device with ending": "con.txt",
    "device with space": "con .txt",
    "device in folder": "a/COM1/b",
    "device with endings": "lpt9.tar.gz",
    "device with superscript": "COM\u00b9",
    "console": "conin$",
    "trailing dot": "a.",
    "trailing space": "a ",
    "trailing dot in folder": "a./b",
    "dots": ".../b",
    "long": "a" * 241,
    "long in bytes": "\u00e9" * 121,
    "long in parts": "/".join(["abcdefg"] * 31),
}


NFC, NFD = (unicodedata.normalize(form, "caf\u00e9.json") for form in ("NFC", "NFD"))


BAD_TARS = {
    "hard link": tar(GOOD, entry("x", type=tarfile.LNKTYPE, linkname="manifest.json")),
    "symbolic link": tar(GOOD, entry("x", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "link with long target": tar(
        GOOD, entry("x", type=tarfile.SYMTYPE, linkname="t" * 300), form=tarfile.GNU_FORMAT
    ),
    "character device": tar(GOOD, entry("x", type=tarfile.CHRTYPE)),
    "block device": tar(GOOD, entry("x", type=tarfile.BLKTYPE)),
    "fifo": tar(GOOD, entry("x", type=tarfile.FIFOTYPE)),
    "contiguous file": tar(GOOD, entry("x", type=tarfile.CONTTYPE)),
    "unknown type": tar(GOOD)[:1024] + raw_header(b"x", kind=b"Z") + END,
    "old sparse file": tar(GOOD)[:1024] + raw_header(b"x", kind=b"S") + END,
    "pax sparse file": tar(GOOD)[:1024]
    + pax(("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"x"))
    + raw_header(b"x")
    + END,
    "case collision": tar(GOOD, entry("Manifest.JSON", b"{}")),
    "case collision of folders": tar(entry("Onnx/a", b"1"), entry("onnx/b", b"2")),
    "case collision beyond ascii": tar(entry("stra\u00dfe", b"1"), entry("STRASSE", b"1")),
    "normalisation collision": tar(entry(NFC, b"1"), entry(NFD, b"1")),
    "file then folder": tar(entry("a", b"1"), entry("a/b", b"2")),
    "folder then file": tar(entry("a/b", b"1"), entry("a", b"2")),
    "file then folder entry": tar(entry("a", b"1"), entry("a/", type=tarfile.DIRTYPE)),
    "folder entry then file": tar(entry("a/", type=tarfile.DIRTYPE), entry("a", b"1")),
    "bad folder entry": tar(GOOD, entry("../a/", type=tarfile.DIRTYPE)),
    "different duplicate": tar(GOOD, entry("manifest.json", b"[]")),
    "different duplicate with dot": tar(GOOD, entry("./manifest.json", b"[]")),
    "different skipped duplicate": tar(GOOD, entry("a.bin", b"1"), entry("a.bin", b"2")),
    "name that is not utf-8": tar(GOOD)[:1024] + raw_header(b"a\xff") + END,
    "pax name that is not utf-8": tar(GOOD)[:1024] + pax(("path", b"a\xff")) + raw_header(b"x") + END,
    "pax name with nul": tar(GOOD)[:1024] + pax(("path", b"a\0b")) + raw_header(b"x") + END,
    "long name with nul": tar(GOOD)[:1024]
    + raw_header(b"L", 4, b"L")
    + padded(b"a\0b\0")
    + raw_header(b"x")
    + END,
    "file with a trailing slash": tar(GOOD)[:1024] + raw_header(b"x/") + END,
    "folder with data": tar(GOOD)[:1024] + raw_header(b"x/", 5, b"5") + padded(b"hello") + END,
    "two names": pax(("path", b"a")) + raw_header(b"L", 2, b"L") + padded(b"b\0") + raw_header(b"x") + END,
    "pax name twice": pax(("path", b"a"), ("path", b"b")) + raw_header(b"x") + END,
    "global name": pax(("path", b"a"), kind=b"g") + raw_header(b"x") + END,
    "pax size that is no number": pax(("size", b"-1")) + raw_header(b"x") + END,
    "pax size of many digits": pax(("size", b"9" * 30)) + raw_header(b"x") + END,
    "pax record too long": raw_header(b"p", 9, b"x") + padded(b"99 path=a") + raw_header(b"x") + END,
    "pax record of nothing": raw_header(b"p", 9, b"x") + padded(b"0 path=a\n") + raw_header(b"x") + END,
    "pax record without length": raw_header(b"p", 9, b"x") + padded(b"path=abc\n") + raw_header(b"x") + END,
    "huge extended header": raw_header(b"p", 1 << 30, b"x") + padded(NOISE) + END,
    "endless extended headers": pax(("comment", b"a")) * 4 + raw_header(b"x") + END,
    "extended header of nothing": tar(GOOD)[:1024] + pax(("path", b"a")) + END,
    "wrong checksum": tar(GOOD)[:1024] + b"x" * 512 + END,
    "negative size": raw_header(b"x", -1) + END,
    "cut in a header": tar(GOOD)[:1300],
    "cut in a member": tar(entry("a", NOISE))[:1024],
    "no end": tar(GOOD)[:1024],
    "data after the end": tar(GOOD) + raw_header(b"x") + END,
    "nothing": b"",
}


WHOLE = gzip.compress(tar(GOOD, entry("noise", NOISE)), mtime=0)


BAD_FILES = {
    "empty": b"",
    "text": b"this is no archive",
    "zip": b"PK\x03\x04" + bytes(60),
    "tar without gzip": tar(GOOD),
    "cut gzip header": WHOLE[:6],
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "cut trailer": WHOLE[:-4],
    "wrong crc": WHOLE[:-8] + bytes([WHOLE[-8] ^ 1]) + WHOLE[-7:],
    "wrong length": WHOLE[:-1] + b"\x01",
    "garbage after": WHOLE + b"garbage",
    "second archive after": WHOLE + WHOLE,
}


def _refused(package: Path, destination: Path, *, limits: Limits | None = None) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        extract(package, destination, limits=limits or Limits())
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
    """A tar with anything but plain files, or that two readers could read differently, is refused."""
    _refused(save(tmp_path / "p", data), tmp_path / "out")


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES)
def test_damaged_file(tmp_path: Path, data: bytes) -> None:
    """A file that is no whole tar.gz is called damaged."""
    package = tmp_path / "p"
    package.write_bytes(data)
    assert "damaged" in str(_refused(package, tmp_path / "out"))


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(max_members=2), "max_members"),
        (Limits(max_member_bytes=2999), "max_member_bytes"),
        (Limits(max_total_bytes=6001), "max_total_bytes"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, word: str) -> None:
    """Each limit refuses an archive just beyond it and its message names the limit."""
    package = save(tmp_path / "p", tar(GOOD, entry("a", NOISE), entry("b", NOISE)))
    assert word in str(_refused(package, tmp_path / "out", limits=limits))


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
