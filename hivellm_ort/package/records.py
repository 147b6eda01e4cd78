"""What was found out about files, remembered so that it is not found out again.

A record of a digest holds for one path while size, times and identity of the file there stay the same. None is made
of a file that was changed within the last two seconds: another change in the same tick of its file system's clock
would not show. A record of a check holds for the bytes that were checked, wherever they are, and for one version of
this package.
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
"""What a check found, as numbers by name; often nothing more than that there is no fault."""

MAX_RECORDS = 512
"""Records kept; those written first go first."""

_FORMAT = 1
_TICK_NS = 2_000_000_000  # FAT's clock, the slowest in use, ticks every two seconds


def hash_package(package: Path, records: Path, *, trusted: bool = True) -> str:
    """Hex SHA-256 of a package file: as recorded, or read now and recorded.

    Args:
        package: The file.
        records: Folder of the records; one that cannot be written is no error.
        trusted: Whether a record is believed.

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
    """What a check of some bytes found: as recorded, or found now and recorded.

    The record is named by the digest of the bytes, so it never speaks of others. What `find` raises is not recorded.

    Args:
        what: The check, with everything but the bytes that its result depends on.
        content: What is checked.
        find: The check.
        records: Folder of the records; one that cannot be written is no error.
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
        # On POSIX it also moves when the content is replaced and the time of change put back.
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
    # Unfinished ones, which a killed process left, are among those that age.
    aged = sorted(record.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in aged[: max(0, len(aged) - MAX_RECORDS)]:
        path.unlink(missing_ok=True)
