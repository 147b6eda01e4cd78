"""What the tests of the store share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.bundle_folders import find_bundle_fault
from hivellm_ort.package.filecheck import FileChecker
from hivellm_ort.package.folders import Layout
from hivellm_ort.package.index import PackageIndex


def count(variable: str, default: int) -> int:
    """How often a test repeats itself: an environment variable's number, or a few times."""
    return int(os.environ.get(variable, default))


def assert_whole(root: Path) -> None:
    """Everything under a final name in a store is complete, digest by digest."""
    layout, checks = Layout(root), FileChecker("digest")
    for blob in layout.blobs.glob("*"):
        assert blob.name == sha256_file(blob)
    for folder in layout.bases.glob("*"):
        assert None is find_bundle_fault(folder, checks)
    for folder in layout.packages.glob("*"):
        index = PackageIndex.load(folder)
        assert index is not None
        assert None is index.find_fault(layout, checks)
    for record in layout.adapters.glob("*.json"):
        value = read_json(record)
        data = record.with_suffix(".safetensors").read_bytes()
        assert (value["size"], value["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for record in layout.records.glob("*.json"):
        assert 64 == len(read_json(record)["sha256"])
