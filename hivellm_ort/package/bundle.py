"""A base bundle: a folder with the base's files, listed with their digests in `decoder.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.filecheck import FileChecks, is_digest
from hivellm_ort.package.jsonfile import Node, read_json
from hivellm_ort.package.names import is_system_file, member_name, shown

__all__ = ["FileRecord", "listed_files", "stored_fault"]


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
        IntegrityError: A name is not one of a file in the bundle.
        ManifestError: `decoder.json` is missing or malformed.
    """
    files = Node(read_json(bundle / DECODER_JSON), DECODER_JSON).child("files")
    if files is None:
        raise ManifestError(f"{DECODER_JSON}: /files: missing; export the package again")
    return {_plain(name): _record(node) for name, node in files.entries()}


def stored_fault(folder: Path, checks: FileChecks) -> str | None:
    """What is wrong with a stored bundle, a folder named by the digest of its `decoder.json`; None if nothing is."""
    try:
        if sha256_file(folder / DECODER_JSON) != folder.name:
            return f"{DECODER_JSON} differs from its SHA-256"
        listed = listed_files(folder)
    except OSError:
        return f"{DECODER_JSON} is missing"
    except LoadError as error:
        return str(error)
    for name, record in listed.items():
        fault = checks.fault(folder / name, record.size, record.sha256)
        if fault is not None:
            return f"{shown(name)} {fault}"
    return None


def _plain(name: str) -> str:
    try:
        if member_name(name) == name and not is_system_file(name):
            return name
    except IntegrityError:
        pass
    raise IntegrityError(
        f"{DECODER_JSON}: /files: {shown(name)} is no file inside the bundle; export the package again"
    )


def _record(node: Node) -> FileRecord:
    size, digest = node.integer("size"), node.required("sha256")
    if size is None or size < 0:
        node.fail("size", "missing or negative; export the package again")
    if not is_digest(digest):
        node.fail("sha256", "no SHA-256 in lower-case hex; export the package again")
    return FileRecord(size, digest)
