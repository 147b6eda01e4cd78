"""Files by digest: what several folders of the store hold is on the disk once."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from hivellm_ort.package.archive import sha256_file

__all__ = ["copy_file", "link_file", "remove_unused_blobs", "share_file"]


def share_file(file: Path, sha256: str, blobs: Path, work: Path) -> None:
    """Make a file and the blob of its digest one file on the disk.

    A blob that is there is hashed before the file becomes a link to it, and replaced when it is damaged.
    Without hard links, or with too many of one file, the file stays where it is.

    Args:
        file: A complete file in the work folder.
        sha256: Its digest.
        blobs: Folder of the blobs.
        work: Folder of the same file system.
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
            # A link that replaces the file would not do: Windows renames nothing that is in use elsewhere.
            file.rename(spare)
            try:
                os.link(blob, file)
            except OSError:
                spare.rename(file)


def link_file(file: Path, place: Path) -> None:
    """Give a complete file a second name; where there are no hard links, or too many of it, a copy.

    Raises:
        OSError: Neither is possible.
    """
    try:
        os.link(file, place)
    except OSError:
        copy_file(file, place)


def copy_file(file: Path, place: Path) -> None:
    """Copy a file, onto the disk and not only to memory.

    Raises:
        OSError: It cannot be read or written.
    """
    with file.open("rb") as source, place.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())


def remove_unused_blobs(blobs: Path) -> None:
    """Remove the blobs that no folder holds a link to."""
    with contextlib.suppress(OSError):
        for blob in list(blobs.iterdir()):
            # One that is in use on Windows stays until the next time.
            with contextlib.suppress(OSError):
                if blob.stat().st_nlink <= 1:
                    blob.unlink()
