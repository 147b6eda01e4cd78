"""Blobs: files named by their digest. Folders of the store link to them, so equal files are stored once."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from hivellm_ort.package.archive import sha256_file

__all__ = ["copy_file", "link_file", "remove_unused_blobs", "share_file"]


def share_file(file: Path, sha256: str, blobs: Path, work: Path) -> None:
    """Store a file and the blob of its digest as one file with two names.

    An existing blob is hashed first; a damaged one is replaced. The file stays unchanged if the file system has no
    hard links, or allows no further link to the blob.

    Args:
        file: A complete file in the work folder.
        sha256: Its digest.
        blobs: Folder of the blobs.
        work: A folder on the same file system.
    """
    blob = blobs / sha256
    spare = work / secrets.token_hex(8)
    with contextlib.suppress(OSError):
        blobs.mkdir(exist_ok=True)
        if not blob.exists():
            os.link(file, blob)
        elif blob.samefile(file):
            return
        elif sha256_file(blob) != sha256:
            os.link(file, spare)
            spare.replace(blob)
        else:
            # A link cannot simply replace the file, because Windows does not rename files in use.
            file.rename(spare)
            try:
                os.link(blob, file)
            except OSError:
                spare.rename(file)


def link_file(file: Path, place: Path) -> None:
    """Give a complete file a second name with a hard link; copy it if that fails.

    Raises:
        OSError: Neither is possible.
    """
    try:
        os.link(file, place)
    except OSError:
        copy_file(file, place)


def copy_file(file: Path, place: Path) -> None:
    """Copy a file and flush it to the disk.

    Raises:
        OSError: The file cannot be read or written.
    """
    with file.open("rb") as source, place.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())


def remove_unused_blobs(blobs: Path) -> None:
    """Remove the blobs to which no folder has a link."""
    with contextlib.suppress(OSError):
        for blob in list(blobs.iterdir()):
            # On Windows a file in use stays until the next time.
            with contextlib.suppress(OSError):
                if blob.stat().st_nlink <= 1:
                    blob.unlink()
