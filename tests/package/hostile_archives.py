"""Archives that must be refused, each for one reason."""

from __future__ import annotations

import gzip
import tarfile
import unicodedata

from package_samples import END, GOOD, NOISE, entry, padded, pax, raw_header, tar

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


def _header(*, size: bytes = b"", prefix: bytes = b"") -> bytes:
    """A header block with any bytes as size or name prefix, and a right checksum."""
    block = bytearray(raw_header(b"x"))
    block[124 : 124 + len(size)] = size
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


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
    "old multi-volume file": tar(GOOD)[:1024] + raw_header(b"x", kind=b"M") + END,
    "volume label": tar(GOOD)[:1024] + raw_header(b"x", kind=b"V") + END,
    "folder dump": tar(GOOD)[:1024] + raw_header(b"x", kind=b"D") + END,
    "header of solaris": tar(GOOD)[:1024] + raw_header(b"x", kind=b"X") + END,
    "long link name": tar(GOOD)[:1024] + raw_header(b"K", 2, b"K") + padded(b"y\0") + raw_header(b"x") + END,
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
    "absolute pax name": tar(GOOD)[:1024] + pax(("path", b"/x")) + raw_header(b"x") + END,
    "pax name that leads out": tar(GOOD)[:1024] + pax(("path", b"../x")) + raw_header(b"x") + END,
    "empty pax name": tar(GOOD)[:1024] + pax(("path", b"")) + raw_header(b"x") + END,
    "prefix that leads out": tar(GOOD)[:1024] + _header(prefix=b"../y") + END,
    "long name that leads out": tar(GOOD)[:1024]
    + raw_header(b"L", 5, b"L")
    + padded(b"../x\0")
    + raw_header(b"x")
    + END,
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
    "size in bad octal": tar(GOOD)[:1024] + _header(size=b"12z45678901\0") + END,
    "size beyond any disk": tar(GOOD)[:1024] + _header(size=b"\x80" + b"\x7f" * 11) + END,
    "cut extended header": pax(("path", b"a"))[:700],
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
    "header only": WHOLE[:10],
    "wrong method": WHOLE[:2] + b"\x07" + WHOLE[3:],
    "bad deflate block": WHOLE[:10] + b"\x07" + WHOLE[11:],
    "endless zeros after": WHOLE + bytes(8 << 20),
    "endless empty members after": WHOLE + gzip.compress(b"", mtime=0) * 200_000,
    "endless name in the gzip header": b"\x1f\x8b\x08\x08" + b"x" * (4 << 20),
}
