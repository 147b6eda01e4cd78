"""Lists the packages, bases, prepared adapters and downloads of a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import LoadError
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.bundle_folders import find_bundle_fault
from hivellm_ort.package.filecheck import FileChecker, is_digest
from hivellm_ort.package.folders import Layout
from hivellm_ort.package.index import FILES, PackageIndex
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.package.stored_adapters import SUFFIX, find_adapter_fault, record_path

__all__ = ["FileSizes", "StoreEntry", "StoreListing", "list_entries", "list_store", "merge_sizes"]

Kind = Literal["package", "base", "adapter", "downloads"]
FileSizes = Mapping[object, int]
"""Bytes of files on the disk, by their identity: device and file number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """One entry of the store.

    Attributes:
        kind: The kind of the entry.
        key: Digest of the package or of the base's `decoder.json`, key of the adapter, or `downloads`.
        path: Its folder, or the file of an adapter.
        name: Name in the manifest of a package or the `decoder.json` of a base; else empty.
        version: Version of a package; else empty.
        precision: Precision of a base; else empty.
        bases: Digests of the bases in a package; else empty.
        last_used: Seconds since the epoch.
        fault: What is damaged; None if nothing is.
        files: Its files on the disk.
    """

    kind: Kind
    key: str
    path: Path
    name: str = ""
    version: str = ""
    precision: str = ""
    bases: tuple[str, ...] = ()
    last_used: float
    fault: str | None = None
    files: FileSizes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its files, including files that it shares with other entries."""
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class StoreListing:
    """The entries of the store.

    Attributes:
        root: The store's folder.
        entries: Packages by name and version, then bases, adapters and downloads.
        total_bytes: Bytes on the disk. Shared files count once. The user's own bundles in `models/` do not count.
    """

    root: Path
    entries: tuple[StoreEntry, ...]
    total_bytes: int


def list_store(layout: Layout, checks: FileChecker) -> StoreListing:
    """List a store.

    Args:
        layout: Its folders.
        checks: Compares files with their records.
    """
    found = list_entries(layout, checks)
    downloads = _files(layout.downloads)
    if downloads:
        last_used = _time(layout.downloads)
        found.append(
            StoreEntry(
                kind="downloads", key="downloads", path=layout.downloads, last_used=last_used, files=downloads
            )
        )
    total = sum(merge_sizes(_files(folder) for folder in layout.managed).values())
    return StoreListing(layout.root, tuple(found), total)


def list_entries(layout: Layout, checks: FileChecker) -> list[StoreEntry]:
    """Return the packages by name and version, then the bases, then the prepared adapters."""
    packages = [
        _package(layout, folder, checks) for folder in _children(layout.packages) if is_digest(folder.name)
    ]
    bases = [_base(folder, checks) for folder in _children(layout.bases) if is_digest(folder.name)]
    adapters = [
        _adapter(path, checks)
        for path in _children(layout.adapters)
        if path.suffix == SUFFIX and is_digest(path.stem)
    ]
    return [
        *sorted(packages, key=lambda entry: (entry.name, entry.version, entry.key)),
        *sorted(bases, key=lambda entry: (entry.name, entry.precision, entry.key)),
        *adapters,
    ]


def merge_sizes(files: Iterable[FileSizes]) -> dict[object, int]:
    """Return the files of several entries, each once."""
    return {identity: size for each in files for identity, size in each.items()}


def _package(layout: Layout, folder: Path, checks: FileChecker) -> StoreEntry:
    index = PackageIndex.load(folder)
    name, version = _texts(folder / FILES / MANIFEST, "name", "version")
    return StoreEntry(
        kind="package",
        key=folder.name,
        path=folder,
        name=name,
        version=version,
        bases=index.bundles if index else (),
        last_used=_time(folder),
        fault=index.find_fault(layout, checks) if index else "index.json is missing or damaged",
        files=_files(folder),
    )


def _base(folder: Path, checks: FileChecker) -> StoreEntry:
    try:
        config = DecoderConfig.from_file(folder / DECODER_JSON)
        name, precision = config.name, config.precision
    except LoadError:  # the fault below says why
        name = precision = ""
    return StoreEntry(
        kind="base",
        key=folder.name,
        path=folder,
        name=name,
        precision=precision,
        last_used=_time(folder),
        fault=find_bundle_fault(folder, checks),
        files=_files(folder),
    )


def _adapter(path: Path, checks: FileChecker) -> StoreEntry:
    return StoreEntry(
        kind="adapter",
        key=path.stem,
        path=path,
        last_used=_time(path),
        fault=find_adapter_fault(path, checks),
        files=merge_sizes(_files(part) for part in (path, record_path(path))),
    )


def _texts(path: Path, *keys: str) -> list[str]:
    """Return texts of a JSON file; empty for a missing one, because a listing must also work for damaged files."""
    try:
        node = Node(read_json(path), path.name)
        return [node.text(key) or "" for key in keys]
    except LoadError:
        return ["" for _ in keys]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _files(path: Path) -> dict[object, int]:
    return dict(_walk(path))


def _walk(path: Path) -> Iterator[tuple[object, int]]:
    """Yield identity and size of a file, or of all files of a folder. Files removed meanwhile are skipped."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    for each in inside if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            found = each.lstat()
            # Some file systems do not number files. There the path is the identity.
            yield (found.st_dev, found.st_ino) if found.st_ino else each, found.st_size
