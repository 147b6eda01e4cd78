"""The base bundle inside a package: the base's files under `onnx/`, listed with digests in `decoder.json`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import Member, sha256_file
from hivellm_ort.package.jsonfile import Node, read_json
from hivellm_ort.package.names import shown

__all__ = [
    "FOLDER",
    "FileRecord",
    "bundle_members",
    "check_bundle",
    "is_intact",
    "listed_files",
]

FOLDER = "onnx"
"""Folder of a package that holds the bundle and the prepared adapter."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What `decoder.json` says about one file.

    Attributes:
        size: Bytes.
        sha256: Hex digest of the bytes.
    """

    size: int
    sha256: str


def listed_files(bundle: Path) -> dict[str, FileRecord]:
    """The files that a bundle's `decoder.json` lists.

    Raises:
        ManifestError: `decoder.json` is missing or malformed.
    """
    files = Node(read_json(bundle / DECODER_JSON), DECODER_JSON).child("files")
    if files is None:
        raise ManifestError(f"{DECODER_JSON}: /files: missing; export the package again")
    return {name: _record(node) for name, node in files.entries()}


def bundle_members(members: Sequence[Member]) -> dict[str, Member]:
    """The members of a package that belong to its bundle, by their name in the bundle."""
    prefix = FOLDER + "/"
    own = {member.name.removeprefix(prefix): member for member in members if member.name.startswith(prefix)}
    own.pop(ADAPTER_FILE, None)
    return own


def check_bundle(bundle: Path, members: Sequence[Member]) -> None:
    """Compare the extracted files of a bundle with its list.

    Args:
        bundle: Folder that holds `decoder.json`.
        members: All members of the package, as extracted.

    Raises:
        IntegrityError: A file is missing, not listed, or differs in size or digest.
        ManifestError: `decoder.json` is missing or malformed.
    """
    found = bundle_members(members)
    if DECODER_JSON not in found:
        raise IntegrityError(
            f"{FOLDER}/{DECODER_JSON} is missing beside {FOLDER}/{min(found)}; export the package again"
        )
    del found[DECODER_JSON]
    listed = listed_files(bundle)
    for name in sorted(found.keys() | listed.keys()):
        member, record = found.get(name), listed.get(name)
        if member is None:
            fault = f"is listed in {DECODER_JSON} but not in the package"
        elif record is None:
            fault = f"is not listed in {DECODER_JSON}"
        elif member.size != record.size:
            fault = f"has {member.size} bytes, {DECODER_JSON} lists {record.size}"
        elif member.sha256 != record.sha256:
            fault = f"differs from the SHA-256 in {DECODER_JSON}"
        else:
            continue
        raise IntegrityError(f"{FOLDER}/ file {shown(name)} {fault}; fetch or export the package again")


def is_intact(bundle: Path) -> bool:
    """Whether a stored bundle, a folder named by its digest, still has its list and all sizes."""
    try:
        return sha256_file(bundle / DECODER_JSON) == bundle.name and all(
            (bundle / name).stat().st_size == record.size for name, record in listed_files(bundle).items()
        )
    except (OSError, LoadError):
        return False


def _record(node: Node) -> FileRecord:
    size, digest = node.integer("size"), node.required("sha256")
    if size is None or size < 0:
        node.fail("size", "missing or negative; export the package again")
    if not _DIGEST.match(digest):
        node.fail("sha256", "no SHA-256 in lower-case hex; export the package again")
    return FileRecord(size, digest)
