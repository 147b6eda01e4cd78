"""Write packages so that the same members give the same bytes."""

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
    """Write a package; a reader never sees half of it.

    The bytes depend on the names, the contents, their order, the compression level and the version of zlib.

    Args:
        package: The file to write or replace.
        members: Names and contents (a file to read, or bytes), in the order to write.
        compresslevel: Of gzip, 0 to 9.
        progress: Called with the number of member bytes just packed.

    Raises:
        IntegrityError: A name that `extract` would refuse or skip, one name twice, or a source that is a link, a
            device or the like.
        OSError: A source cannot be read or the package not written, or what it would replace is no file.
    """
    names = MemberNames()
    package = Path(package)
    if package.exists() and not package.is_file():  # a device would be lost, for everybody
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
    # No name and no time in the gzip header; TarInfo's own defaults are time 0, owner 0 and mode 0644.
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
    """A source, whose folders are the package's own as far as it is called as its member."""
    parts = tuple(name.split("/"))
    same = source.parts[-len(parts) :] == parts
    return open_file(source, below=source.parents[len(parts) - 1] if same else None)


class _Tally:
    """A source that reports what is read from it."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        if self._progress is not None and data:
            self._progress(len(data))
        return data
