"""Records of digests and checks, so that unchanged files are not hashed or checked again.

A digest is valid for one path while size, times and identity of the file stay the same. No record is made of a file
that was changed within the last two seconds. A second change in the same tick of the file system's clock would not be
visible. The record of a check is valid for the checked bytes in any file, and for one version of this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hivellm_ort.errors import LoadError
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.filecheck import is_digest
from hivellm_ort.package.folders import write_file
from hivellm_ort.version import __version__

__all__ = ["MAX_RECORDS", "Found", "forget", "hash_package", "recall"]

Found = Mapping[str, float]
"""The result of a check, as numbers by name; empty if the check only passed."""

MAX_RECORDS = 512
"""Most records; the oldest are removed."""

_FORMAT = 1
_TICK_NS = 2_000_000_000  # the clock of FAT, the slowest in use, ticks every two seconds


def hash_package(package: Path, records: Path, *, trusted: bool = True) -> str:
    """Return the hex SHA-256 of a package file from its record, or hash the file and record the digest.

    Args:
        package: The file.
        records: Folder of the records. It is not an error if it cannot be written.
        trusted: Whether to use a record.

    Raises:
        OSError: The file cannot be read.
    """
    identity, now = _identity(package), time.time_ns()
    if trusted and (known := _read(_record(package, records), identity)) is not None:
        return known
    digest = sha256_file(package)
    changed = max(identity["mtime_ns"], identity["ctime_ns"])
    if now - changed > _TICK_NS and _identity(package) == identity:
        with contextlib.suppress(OSError):
            _write(_record(package, records), {**identity, "sha256": digest})
    return digest


def forget(package: Path, records: Path) -> None:
    """Remove the record of a package file."""
    with contextlib.suppress(OSError):
        _record(package, records).unlink(missing_ok=True)


def recall(what: str, content: bytes, find: Callable[[], Found], records: Path) -> Found:
    """Return the recorded result of a check, or run the check and record its result.

    The record is named by the digest of the bytes, so it is never used for other bytes. Errors are not recorded.

    Args:
        what: Name of the check, with all parameters that its result depends on.
        content: The bytes to check.
        find: Runs the check.
        records: Folder of the records. It is not an error if it cannot be written.
    """
    key = "\n".join((__version__, what, hashlib.sha256(content).hexdigest()))
    record = records / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    with contextlib.suppress(LoadError):
        known = read_json(record)
        if known.pop("check", None) == what and all(type(value) is float for value in known.values()):
            return known
    found = {name: float(value) for name, value in find().items()}
    with contextlib.suppress(OSError):
        _write(record, {"check": what, **found})
    return found


def _identity(package: Path) -> dict[str, int]:
    found = package.stat()
    return {
        "format": _FORMAT,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        # On POSIX it also changes if the content is replaced and the modification time is reset.
        "ctime_ns": found.st_ctime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
    }


def _record(package: Path, records: Path) -> Path:
    return records / f"{hashlib.sha256(os.fsencode(package.absolute())).hexdigest()}.json"


def _read(record: Path, identity: dict[str, int]) -> str | None:
    try:
        value = read_json(record)
    except LoadError:
        return None
    digest = value.pop("sha256", None)
    return digest if value == identity and isinstance(digest, str) and is_digest(digest) else None


def _write(record: Path, value: dict[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    write_file(record, json.dumps(value).encode(), record.parent)
    # Unfinished files of killed processes are among them, and are removed too.
    aged = sorted(record.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in aged[: max(0, len(aged) - MAX_RECORDS)]:
        path.unlink(missing_ok=True)
