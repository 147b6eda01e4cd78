"""Compares files on disk with their recorded size and digest."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Literal, get_args

from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.packing import Progress

__all__ = ["Check", "FileChecker", "is_digest"]

Check = Literal["size", "digest"]
"""How files are compared with their records: `size` compares sizes only, `digest` reads and hashes every file."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hex."""
    return _DIGEST.match(text) is not None


class FileChecker:
    """Compares files with their records. A file with several names is hashed once.

    Args:
        check: What to compare.
        progress: Called with the number of bytes just hashed.

    Raises:
        ValueError: `check` is neither `size` nor `digest`.
    """

    def __init__(self, check: Check, progress: Progress | None = None) -> None:
        if check not in get_args(Check):
            raise ValueError(f"check is {check!r}: it must be 'size' or 'digest'")
        self._check = check
        self._progress = progress
        self._digests: dict[tuple[int, int] | Path, str] = {}

    def find_fault(self, path: Path, size: int, sha256: str) -> str | None:
        """Return what is wrong with a file, as the rest of a sentence about it; None if nothing is.

        Args:
            path: The file.
            size: Its recorded size in bytes.
            sha256: Its recorded digest.
        """
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return "is not a regular file"
            if found.st_size != size:
                return f"has {found.st_size} bytes, recorded are {size}"
            if self._check == "digest":
                # Some file systems do not number files. There the path is the identity.
                identity = (found.st_dev, found.st_ino) if found.st_ino else path
                if identity not in self._digests:
                    self._digests[identity] = sha256_file(path)
                    if self._progress is not None:
                        self._progress(size)
                if self._digests[identity] != sha256:
                    return "differs from its SHA-256"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None
