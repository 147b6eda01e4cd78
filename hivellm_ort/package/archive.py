"""Reads package archives (tar.gz) without trusting them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.package.member_names import MemberNames, is_never_loaded, is_weights
from hivellm_ort.package.packing import Progress, write
from hivellm_ort.package.tarstream import GzipReader, Header, read_headers
from hivellm_ort.paths import StrPath

__all__ = [
    "DEFAULT_LIMITS",
    "ArchiveContents",
    "Limits",
    "Member",
    "Progress",
    "extract",
    "sha256_file",
    "write",
]

_MIB, _GIB = 1 << 20, 1 << 30
# Bytes of one member before its ratio counts: the largest real texts compress ten to one, and half of an untrained
# adapter's weights are zeros, with which they may begin.
_FREE_TEXT, _FREE_WEIGHTS = 1 * _MIB, 64 * _MIB
_NOTED = 3  # most names of system files in a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the size of an unpacked archive.

    Attributes:
        max_members: Most entries of the archive, including folders and skipped files.
        max_member_bytes: Most bytes of one file of weights, such as `.bin`, `.onnx` and `.safetensors`.
        max_text_bytes: Most bytes of any other file. The largest tokenizers have 35 MB.
        max_total_bytes: Most bytes of all files together.
        max_ratio: Most bytes of output per compressed byte of the archive. It counts once the output exceeds 16 MiB.
        max_member_ratio: Most bytes of output per compressed byte of one file. It counts after the first 64 MiB of
            weights, and after the first 1 MiB of any other file.
    """

    max_members: int = 4096
    max_member_bytes: int = 8 * _GIB
    max_text_bytes: int = 64 * _MIB
    max_total_bytes: int = 16 * _GIB
    max_ratio: float = 200.0
    max_member_ratio: float = 50.0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: Relative name, its parts joined by `/`.
        size: Bytes.
        sha256: Hex digest of the bytes.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveContents:
    """The contents of an archive.

    Attributes:
        sha256: Hex digest of the archive itself.
        members: The files written, in the order of the archive.
        skipped: The files left out: pickles, programs, scripts, and files that macOS and Windows add. Signatures
            cover them too, but need not cover the last kind.
        notes: One sentence for each skipped or repeated member; one for all files that macOS and Windows added.
    """

    sha256: str
    members: tuple[Member, ...]
    skipped: tuple[Member, ...]
    notes: tuple[str, ...]


def sha256_file(path: StrPath) -> str:
    """Return the hex SHA-256 of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(
    package: StrPath,
    destination: StrPath,
    *,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> ArchiveContents:
    """Unpack a package into a folder. Nothing is left there if one file is refused.

    Args:
        package: The tar.gz file.
        destination: An empty folder; it is made if missing. After an error it is empty.
        limits: Limits on the unpacked size.
        progress: Called with the number of compressed bytes just read.

    Returns:
        The members with their digests.

    Raises:
        IntegrityError: The archive is damaged or unsafe, or exceeds a limit.
        LoadError: The package cannot be read, the folder cannot be written, or it is not empty.
    """
    package, destination = Path(package), Path(destination)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        if any(destination.iterdir()):
            raise LoadError(f"{destination}: the folder to unpack into is not empty; name an empty one")
        if package.exists() and not (package.is_file() or package.is_dir()):
            raise LoadError(
                f"{package}: a named pipe, a device or a socket, not a .expert file; check the path"
            )
        with package.open("rb") as file, _emptied_on_error(destination):
            return _Extraction(destination, limits).run(
                GzipReader(file, max_ratio=limits.max_ratio, progress=progress)
            )
    except IntegrityError as error:
        raise IntegrityError(f"{package}: {error}") from error
    except OSError as error:
        raise LoadError(
            f"{package}: cannot be unpacked: {error.strerror or 'input or output failed'}; "
            "check the path, the permissions and the free space"
        ) from error


class _Extraction:
    """One run of `extract`."""

    def __init__(self, destination: Path, limits: Limits) -> None:
        self._destination = destination
        self._limits = limits
        self._names = MemberNames()
        self._members: dict[str, Member] = {}
        self._skipped: dict[str, Member] = {}
        self._notes: list[str] = []
        self._system_files: list[str] = []
        self._total = 0

    def run(self, stream: GzipReader) -> ArchiveContents:
        for count, header in enumerate(read_headers(stream), start=1):
            if count > self._limits.max_members:
                raise _limit_error(
                    "the archive", f"more than {self._limits.max_members} members", "max_members"
                )
            self._accept(header, stream)
        if self._system_files:
            self._notes.append(_left_out(self._system_files))
        return ArchiveContents(
            sha256=stream.sha256,
            members=tuple(self._members.values()),
            skipped=tuple(self._skipped.values()),
            notes=tuple(self._notes),
        )

    def _accept(self, header: Header, stream: GzipReader) -> None:
        if header.directory and header.name in ("", "."):
            return
        name = member_name(header.name)
        new = self._names.add(name, directory=header.directory)
        if header.directory:
            return
        self._check_size(name, header.size, stream)
        system_file = is_system_file(name)
        skip = system_file or is_never_loaded(name)
        kept = self._skipped if skip else self._members
        if new and not skip:
            kept[name] = Member(name, header.size, self._write(name, header.size, stream))
            return
        member = Member(name, header.size, self._digest(name, header.size, stream))
        if new and system_file:
            self._system_files.append(name)
        elif new:
            self._notes.append(f"{name} was left out: pickles, programs and scripts are never loaded")
        elif kept[name] != member:
            raise IntegrityError(
                f"member {shown(name)} comes twice with different bytes; pack the archive again with one"
            )
        else:
            self._notes.append(f"{name} comes twice with the same bytes")
        kept[name] = member

    def _check_size(self, name: str, size: int, stream: GzipReader) -> None:
        # Exactly `size` bytes are read for the member, so this limits the output before it is written.
        self._total += size
        limits = {"max_member_bytes": self._limits.max_member_bytes}
        if not is_weights(name):
            limits["max_text_bytes"] = self._limits.max_text_bytes
        limit = min(limits, key=limits.__getitem__)
        if size > limits[limit]:
            raise _limit_error(f"member {shown(name)}", f"more than {limits[limit]} bytes", limit)
        if self._total > self._limits.max_total_bytes:
            raise _limit_error(
                "the archive", f"more than {self._limits.max_total_bytes} bytes unpacked", "max_total_bytes"
            )
        stream.check(self._total)

    def _write(self, name: str, size: int, stream: GzipReader) -> str:
        path = self._destination.joinpath(*name.split("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("xb")
        except FileExistsError:
            # The names differ, but this file system takes them for one (as with short 8.3 names).
            raise IntegrityError(f"member {shown(name)} collides with an earlier one; rename it") from None
        with file:
            digest = self._digest(name, size, stream, file)
            file.flush()
            os.fsync(file.fileno())
        return digest

    def _digest(self, name: str, size: int, stream: GzipReader, file: BinaryIO | None = None) -> str:
        """Hash the next `size` bytes, which belong to a member. Write them if there is a file."""
        digest = hashlib.sha256()
        free = _FREE_WEIGHTS if is_weights(name) else _FREE_TEXT
        for data in stream.member(name, size, free=free, max_ratio=self._limits.max_member_ratio):
            digest.update(data)
            if file is not None:
                file.write(data)
        return digest.hexdigest()


def _left_out(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} was left out: macOS or Windows added it, and no package needs it"
    more = f" and {len(names) - _NOTED} more" if len(names) > _NOTED else ""
    return f"{', '.join(names[:_NOTED])}{more} were left out: macOS or Windows added them, and no package needs them"


def _limit_error(what: str, fault: str, limit: str) -> IntegrityError:
    return IntegrityError(f"{what} has {fault} ({limit}); raise the limit only for a package you trust")


@contextlib.contextmanager
def _emptied_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # An error while deleting must not hide the first error.
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()
        raise
