"""Removes entries from the store: the least recently used, the damaged, or all."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from hivellm_ort.package.blobs import remove_unused_blobs
from hivellm_ort.package.entries import StoreEntry, list_entries, merge_sizes
from hivellm_ort.package.filecheck import FileChecker
from hivellm_ort.package.folders import Layout, discard
from hivellm_ort.package.packing import Progress
from hivellm_ort.package.stored_adapters import record_path

__all__ = ["LOCK_SECONDS", "clear", "prune", "shrink"]

LOCK_SECONDS = 60.0
"""How long `clear` and `prune` wait for another process that unpacks or prunes."""

_DAY = 24 * 60 * 60


def shrink(
    layout: Layout, max_bytes: int, work: Path, *, keep: Collection[Path] = frozenset()
) -> list[StoreEntry]:
    """Remove the least recently used entries until packages, bases and prepared adapters fit a size.

    Args:
        layout: Folders of a store whose lock is held.
        max_bytes: The size. Shared files count once.
        work: The work folder of the lock; it is emptied.
        keep: Folders and files of entries to keep.

    Returns:
        The entries removed.
    """
    entries = list_entries(layout, FileChecker("size"))
    used = _last_used(entries)
    # A package is removed before its base, because without the base it would be damaged.
    entries.sort(key=lambda entry: (used[entry.path], entry.kind == "base"))
    sizes = merge_sizes(entry.files for entry in entries)
    owners = Counter(identity for entry in entries for identity in entry.files)
    total, removed = sum(sizes.values()), []
    for entry in entries:
        if total <= max_bytes:
            break
        if entry.path in keep or not _remove(entry, work):
            continue
        removed.append(entry)
        owners.subtract(entry.files.keys())
        total -= sum(size for identity, size in entry.files.items() if not owners[identity])
    _free(layout, work)
    return removed


def prune(
    layout: Layout, *, max_bytes: int | None, unused_days: float | None, progress: Progress | None
) -> list[StoreEntry]:
    """Remove damaged entries, unused entries and unused files.

    Every file is hashed. Other processes wait until they can unpack. Entries that are being loaded stay.

    Args:
        layout: The store's folders.
        max_bytes: As for `shrink`; None for no limit.
        unused_days: Also remove entries that were not used for so many days; None to keep them.
        progress: Called with the number of bytes just hashed.

    Returns:
        The entries removed.

    Raises:
        LoadError: Another process unpacks or prunes for too long.
        OSError: The store cannot be written.
        NotImplementedError: Its file system has no locks.
    """
    if not layout.root.exists():
        return []
    with layout.workspace(seconds=LOCK_SECONDS) as work:
        entries = list_entries(layout, FileChecker("digest", progress))
        used = _last_used(entries)
        before = time.time() - unused_days * _DAY if unused_days is not None else 0.0
        removed = [
            entry
            for entry in entries
            if (entry.fault is not None or used[entry.path] < before) and _remove(entry, work)
        ]
        _free(layout, work)
        return removed if max_bytes is None else removed + shrink(layout, max_bytes, work)


def clear(layout: Layout) -> int:
    """Remove all entries except those that are being loaded, or are open on Windows. The user's own files stay.

    Returns:
        How many packages, bases and prepared adapters stay.

    Raises:
        LoadError: Another process unpacks or prunes for too long.
        OSError: The store cannot be written.
        NotImplementedError: Its file system has no locks.
    """
    if not layout.root.exists():
        return 0
    with layout.workspace(seconds=LOCK_SECONDS) as work:
        entries = (layout.packages, layout.bases, layout.adapters)
        left = sum(not discard(path, work) for folder in entries for path in _children(folder))
        for folder in (layout.records, layout.downloads, *([] if left else [layout.blobs])):
            for path in _children(folder):
                discard(path, work)
        _free(layout, work)
        return left


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _last_used(entries: Sequence[StoreEntry]) -> dict[Path, float]:
    """Return when each entry was last used. Using a package also uses its bases."""
    used = {entry.path: entry.last_used for entry in entries}
    bases = {entry.key: entry.path for entry in entries if entry.kind == "base"}
    for entry in entries:
        for path in (bases[digest] for digest in entry.bases if digest in bases):
            used[path] = max(used[path], entry.last_used)
    return used


def _remove(entry: StoreEntry, work: Path) -> bool:
    gone = discard(entry.path, work)
    if gone and entry.kind == "adapter":
        discard(record_path(entry.path), work)
    return gone


def _free(layout: Layout, work: Path) -> None:
    """Delete the removed entries, then the blobs to which no entry has a link."""
    for path in list(work.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    remove_unused_blobs(layout.blobs)
