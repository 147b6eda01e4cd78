"""Prepared adapters in the store: `<key>.safetensors`, and the record `<key>.json` with size and digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hivellm_ort.errors import LoadError
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.filecheck import FileChecker
from hivellm_ort.package.folders import write_file

__all__ = ["SUFFIX", "find_adapter_fault", "record_path", "write_adapter"]

SUFFIX = ".safetensors"
"""The ending of a prepared adapter's file name."""


def record_path(adapter: Path) -> Path:
    """Return the file with the size and digest of a prepared adapter."""
    return adapter.with_suffix(".json")


def find_adapter_fault(adapter: Path, checks: FileChecker) -> str | None:
    """Return what is wrong with a prepared adapter; None if nothing is."""
    try:
        node = Node(read_json(record_path(adapter)), record_path(adapter).name)
        size, sha256 = node.integer("size"), node.required("sha256")
    except LoadError as error:
        return str(error)
    return checks.find_fault(adapter, -1 if size is None else size, sha256)


def write_adapter(adapter: Path, data: bytes, work: Path) -> None:
    """Write a prepared adapter and then its record. Without the record it is not used.

    Raises:
        OSError: It cannot be written.
    """
    adapter.parent.mkdir(exist_ok=True)
    write_file(adapter, data, work)
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_file(record_path(adapter), json.dumps(record).encode(), work)
