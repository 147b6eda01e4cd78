"""Whether files on disk are still what was recorded of them."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Literal, get_args

from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.packing import Progress

__all__ = ["Check", "FileChecker", "is_digest"]

Check = Literal["size", "digest"]
"""How files are compared with what is recorded of them: `size` reads none of them, `digest` all."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hex."""
    return _DIGEST.match(text) is not None


class FileChecker:
    """Compares files with their records; a file with several names is hashed once.

    Args:
        check: What is compared.
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
        """What is wrong with a file, as the rest of a sentence about it; None when nothing is.

        Args:
            path: The file.
            size: Bytes recorded of it.
            sha256: Digest recorded of it.
        """
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return "is no regular file"
            if found.st_size != size:
                return f"has {found.st_size} bytes, recorded are {size}"
            if self._check == "digest":
                # Some file systems number no files; those are known by their paths.
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
