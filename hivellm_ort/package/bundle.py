"""The base bundle, in a package under `onnx/`: the base's files, listed with digests in `decoder.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import Member, sha256_file
from hivellm_ort.package.filecheck import Check, FileChecks, is_digest
from hivellm_ort.package.jsonfile import Node, read_json
from hivellm_ort.package.names import member_name, shown

__all__ = [
    "FOLDER",
    "Check",
    "FileRecord",
    "bundle_members",
    "check_bundle",
    "check_folder",
    "listed_files",
    "stored_fault",
]

FOLDER = "onnx"
"""Folder of a package that holds the bundle and the prepared adapter."""


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


def check_folder(bundle: Path, check: Check = "size") -> None:
    """Compare the files of a bundle that was opened in place with its list; files beyond it do not matter.

    Args:
        bundle: Folder that holds `decoder.json`.
        check: `size` reads no file, `digest` reads all.

    Raises:
        IntegrityError: A file is missing, or differs in size or digest.
        ManifestError: `decoder.json` is missing or malformed.
    """
    try:
        listed = listed_files(bundle)
    except (IntegrityError, ManifestError) as error:
        raise type(error)(f"{bundle}: {error}") from error
    checks = FileChecks(check)
    for name, record in sorted(listed.items()):
        fault = checks.fault(bundle / name, record.size, record.sha256)
        if fault is not None:
            raise IntegrityError(
                f"{bundle}: file {shown(name)}, listed in {DECODER_JSON}, {fault}; "
                "fetch or export the bundle again"
            )


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
        if member_name(name) == name:
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
