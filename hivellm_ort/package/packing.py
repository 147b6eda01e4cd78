"""Writes package archives. Equal members give equal bytes."""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.package.folders import sync_folder
from hivellm_ort.package.links import open_file
from hivellm_ort.package.member_names import MemberNames, is_never_loaded
from hivellm_ort.paths import StrPath

__all__ = ["Progress", "write"]

Progress = Callable[[int], object]
"""Called with the number of bytes just processed, such as `tqdm.update`."""


def write(
    package: StrPath,
    members: Sequence[tuple[str, StrPath | bytes]],
    *,
    compresslevel: int = 6,
    progress: Progress | None = None,
) -> None:
    """Write a package in one step: a reader never sees an incomplete file.

    The bytes depend on names, contents, their order, the compression level and the version of zlib.

    Args:
        package: The file to write or replace.
        members: Names and contents (a file to read, or bytes), in their order.
        compresslevel: Compression level of gzip, 0 to 9.
        progress: Called with the number of member bytes just packed.

    Raises:
        IntegrityError: `extract` would refuse or skip a name, a name comes twice, or a source is a link or a device.
        OSError: A source cannot be read, the package cannot be written, or it would replace a folder or device.
    """
    names = MemberNames()
    package = Path(package)
    if package.exists() and not package.is_file():  # a device would be deleted for the whole system
        raise OSError(errno.EEXIST, "There is a folder or a device of that name", os.fspath(package))
    checked = [
        (_writable(raw, names), source if isinstance(source, bytes) else Path(source))
        for raw, source in members
    ]
    scratch = package.with_name(f".{package.name}.{secrets.token_hex(8)}.tmp")
    try:
        with scratch.open("xb") as file:
            _pack(file, checked, compresslevel, progress)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(package)
        sync_folder(package.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _writable(raw: str, names: MemberNames) -> str:
    name = member_name(raw)
    if is_never_loaded(name):
        raise IntegrityError(
            f"member {shown(name)}: pickles, programs and scripts are never loaded from a package; leave it out"
        )
    if is_system_file(name):
        raise IntegrityError(
            f"member {shown(name)}: files that macOS and Windows add are never unpacked; leave it out"
        )
    if not names.add(name):
        raise IntegrityError(f"member {shown(name)} comes twice; leave one out")
    return name


def _pack(
    file: BinaryIO, members: Sequence[tuple[str, Path | bytes]], compresslevel: int, progress: Progress | None
) -> None:
    # The gzip header has no name and no time. The defaults of TarInfo are time 0, owner 0 and mode 0644.
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=compresslevel, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, source in members:
            info = tarfile.TarInfo(name)
            with io.BytesIO(source) if isinstance(source, bytes) else _opened(name, source) as content:
                info.size = content.seek(0, os.SEEK_END)
                content.seek(0)
                tar.addfile(info, _Tally(content, progress))


def _opened(name: str, source: Path) -> BinaryIO:
    """Open a source. If its path ends with the member's name, the folders in that name must not be links."""
    parts = tuple(name.split("/"))
    same = source.parts[-len(parts) :] == parts
    return open_file(source, below=source.parents[len(parts) - 1] if same else None)


class _Tally:
    """A source that reports progress while it is read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        if self._progress is not None and data:
            self._progress(len(data))
        return data
