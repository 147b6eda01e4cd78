"""Reads tar headers from a gzip stream strictly.

Only single header blocks are decoded with `tarfile`. Its reader of whole archives takes a damaged header for the end
of the archive, and reads extended headers of any size into memory.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import shown

__all__ = ["GzipReader", "Header", "damage_error", "read_headers"]

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_PIECE = 16 << 10  # bytes of input read at once; the precision of the ratio of a member
_FREE_OUTPUT = (
    16 << 20
)  # bytes of output before the archive's ratio counts, for small models of zeros in tests
# Bytes of input that may give no output. Endless zeros after the data, endless empty members or an endless file name
# in the gzip header would be slow to read. The overhead of gzip itself is below a thousandth.
_FREE_INPUT = 2 << 20
# Most bytes of one extended header, and of all. A legal name needs 240, but macOS and `tar --xattrs` add attributes.
_MAX_EXTENDED, _MAX_ALL_EXTENDED = 256 << 10, 16 << 20
_MAX_EXTENDED_IN_A_ROW = 3
_MAX_TAIL = 1 << 20  # most zero bytes after the archive's end; writers pad to 10 KiB
# Records of sparse files by GNU tar, bsdtar, star and Solaris. Their data without the holes is not the file.
_SPARSE_RECORDS = ("GNU.sparse.", "SCHILY.realsize", "SUN.holesdata")
_SPARSE_NAME = "GNU.sparse.name"
_SPARSE = "sparse file"
_KINDS = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
    tarfile.GNUTYPE_SPARSE: _SPARSE,
    tarfile.GNUTYPE_LONGLINK: "link",
}
_CURES = {
    "hard link": "with --hard-dereference",
    "symbolic link": "with --dereference",
    "link": "with --dereference",
    _SPARSE: "without --sparse (bsdtar: with --no-read-sparse)",
}
# Other kinds of files, by their first bytes. The mark of a tar is not at the beginning.
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"version https://git-lfs": "a pointer of Git LFS (the file itself was not fetched)",
    b"<!DOCTYPE html": "a web page",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257


def damage_error(what: str) -> IntegrityError:
    """Return the error for a damaged archive."""
    return IntegrityError(f"the archive is damaged: {what}; fetch the package again")


@dataclass(frozen=True, slots=True)
class Header:
    """One regular file or folder of the archive.

    Attributes:
        name: The recorded name, unchecked; for a folder without the trailing slash.
        size: Bytes of the file; 0 for a folder.
        directory: Whether it is a folder.
    """

    name: str
    size: int
    directory: bool


class GzipReader:
    """Reads a gzip file, limits its compression ratio and hashes the compressed bytes.

    Args:
        file: The compressed file, at its start.
        max_ratio: Most bytes of output per byte of the whole file. It counts once the output exceeds 16 MiB.
        progress: Called with the number of compressed bytes just read.
    """

    def __init__(
        self, file: BinaryIO, *, max_ratio: float, progress: Callable[[int], object] | None = None
    ) -> None:
        self._file = file
        self._max_ratio = max_ratio
        self._progress = progress
        self._hash = hashlib.sha256()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._begin = file.read(_BLOCK)
        file.seek(0)
        self._taken = 0
        self._given = 0
        self._gzip = gzip.GzipFile(fileobj=_Source(self._take), mode="rb")

    @property
    def sha256(self) -> str:
        """Hex digest of the compressed bytes read so far."""
        return self._hash.hexdigest()

    def check(self, output: int) -> None:
        """Check whether the whole file may unpack to so many bytes.

        Raises:
            IntegrityError: The bytes exceed the ratio.
        """
        if output > max(_FREE_OUTPUT, self._max_ratio * self._size):
            raise _limit_error("the archive", "max_ratio", self._max_ratio)

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, at most 1 MiB; returns nothing at the end.

        Raises:
            IntegrityError: The gzip stream is damaged, or its ratio exceeds the limit.
            OSError: The file cannot be read.
        """
        try:
            data = self._gzip.read(min(size, _CHUNK))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._unreadable(error) from error
        self._given += len(data)
        self.check(self._given)
        return data

    def exactly(self, size: int) -> bytes:
        """Read `size` bytes.

        Raises:
            IntegrityError: As for `read`, or the stream ends too early.
            OSError: The file cannot be read.
        """
        return b"".join(self.chunks(size))

    def chunks(self, size: int) -> Iterator[bytes]:
        """Read `size` bytes piece by piece. Raises as `exactly`."""
        while size:
            data = self.read(size)
            if not data:
                raise damage_error("it ends too early")
            size -= len(data)
            yield data

    def member(self, name: str, size: int, *, free: int, max_ratio: float) -> Iterator[bytes]:
        """Read a member piece by piece, and limit its compression ratio.

        Args:
            name: The member, for messages.
            size: Its size in bytes.
            free: Bytes that the ratio does not limit.
            max_ratio: Most bytes of output per compressed byte of the member.

        Raises:
            IntegrityError: The member exceeds the ratio, or as for `exactly`.
            OSError: The file cannot be read.
        """
        given, before = 0, self._taken
        for data in self.chunks(size):
            given += len(data)
            # The input of these bytes may have been read in the piece before.
            if given > free + max_ratio * (self._taken - before + _PIECE):
                raise _limit_error(f"member {shown(name)}", "max_member_ratio", max_ratio)
            yield data

    def _take(self, size: int) -> bytes:
        data = self._file.read(min(size, _PIECE))
        self._taken += len(data)
        if self._taken > _FREE_INPUT + 2 * self._given:
            raise damage_error("gzip: it holds next to nothing")
        self._hash.update(data)
        if self._progress is not None and data:
            self._progress(len(data))
        return data

    def _unreadable(self, error: Exception) -> IntegrityError:
        other = next((what for mark, what in _OTHERS.items() if self._begin.startswith(mark)), None)
        if self._begin[_TAR_MARK_AT:].startswith(_TAR_MARK):
            other = "a tar without gzip"
        if other is None:
            return damage_error(f"gzip: {error}")
        return IntegrityError(f"the file is not a package but {other}; a package is a tar.gz")


class _Source:
    """The methods of a file that GzipFile needs."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read

    def seek(self, offset: int) -> None:
        raise OSError(f"a stream cannot seek to {offset}")


def _limit_error(what: str, limit: str, ratio: float) -> IntegrityError:
    return IntegrityError(
        f"{what} unpacks to more than {ratio:g} times its size ({limit}); "
        "raise the limit only for a package you trust"
    )


def read_headers(stream: GzipReader) -> Iterator[Header]:
    """Yield the headers of the files and folders of a tar, and check the end of the archive.

    The caller must read exactly `size` bytes of each file before it takes the next header.

    Raises:
        IntegrityError: The archive is damaged, or contains anything but files and folders.
        OSError: The file cannot be read.
    """
    extended: dict[str, str] = {}
    in_a_row = all_extended = 0
    while True:
        block = stream.exactly(_BLOCK)
        if not block.strip(b"\0"):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise damage_error(f"tar header: {error}") from error
        # The recorded type, because frombuf changes that of an old-style file whose name ends in a slash.
        kind = block[156:157]
        if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            in_a_row += 1
            all_extended += info.size
            if (
                not 0 <= info.size <= _MAX_EXTENDED
                or in_a_row > _MAX_EXTENDED_IN_A_ROW
                or all_extended > _MAX_ALL_EXTENDED
            ):
                raise IntegrityError(
                    "the archive has oversized extended headers; pack it again without --xattrs "
                    "(bsdtar: with --no-xattrs)"
                )
            _extend(extended, kind, stream.exactly(info.size))
            stream.exactly(-info.size % _BLOCK)
            continue
        header = _header(info, kind, extended)
        extended, in_a_row = {}, 0
        yield header
        stream.exactly(-header.size % _BLOCK)
    if extended:
        raise damage_error("an extended header has no member")
    _finish(stream)


def _header(info: tarfile.TarInfo, kind: bytes, extended: dict[str, str]) -> Header:
    name = extended.get("path", info.name)
    if _SPARSE in extended:
        raise _irregular(extended[_SPARSE] or name, _SPARSE)
    # In the v7 format a folder is a file whose name ends in a slash. frombuf has made it a folder.
    directory = kind == tarfile.DIRTYPE or (kind == tarfile.AREGTYPE and info.isdir())
    if not directory and kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _irregular(name, _KINDS.get(kind, f"type {kind.decode('latin-1')!a}"))
    size = int(extended.get("size", info.size))
    if size < 0 or (directory and size):
        raise damage_error(f"member {shown(name)} has a size of {size}")
    return Header(name.rstrip("/") if directory else name, size, directory)


def _irregular(name: str, what: str) -> IntegrityError:
    cure = _CURES.get(what, "without it")
    return IntegrityError(
        f"member {shown(name)} is not a regular file ({what}); pack the archive again {cure}"
    )


def _extend(extended: dict[str, str], kind: bytes, data: bytes) -> None:
    """Add the records of an extended header for the next member."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        found = {"path": data.removesuffix(b"\0").decode("utf-8", "surrogateescape")}
    else:
        found = _pax_records(data)
    # Readers differ in which of two names or sizes they use, so only one is allowed.
    if extended.keys() & found.keys():
        raise damage_error("two extended headers describe one member")
    if kind == tarfile.XGLTYPE and found:
        raise damage_error("a global header describes every member at once")
    extended.update(found)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the path and size of a pax header, and the name of a sparse file. Other records are ignored."""
    found: dict[str, str] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 8)
        digits = data[start:space]
        end = start + int(digits) if space > start and digits.isdigit() else 0
        if not start < space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise damage_error("a pax record has a wrong length")
        key_bytes, _, value = data[space + 1 : end - 1].partition(b"=")
        key = key_bytes.decode("utf-8", "replace")
        start = end
        if key.startswith(_SPARSE_RECORDS):
            found.setdefault(_SPARSE, "")
            if key == _SPARSE_NAME:
                found[_SPARSE] = value.decode("utf-8", "surrogateescape")
        if key not in ("path", "size"):
            continue
        if key in found or (key == "size" and not (value.isdigit() and len(value) < 20)):
            raise damage_error(f"a pax header has a wrong {key}")
        found[key] = value.decode("utf-8", "surrogateescape")
    return found


def _finish(stream: GzipReader) -> None:
    """Read the rest of the gzip stream, so that its CRC is checked. Only zeros may follow the last member."""
    tail = 0
    while data := stream.read(_CHUNK):
        tail += len(data)
        if tail > _MAX_TAIL or data.strip(b"\0"):
            raise damage_error("data follows the end of the tar")
