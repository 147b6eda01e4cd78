"""The files of a package and their digests, compared with the list in `integrity.files`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.package.archive import Limits, Member, sha256_file
from hivellm_ort.package.links import files_below
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.package.member_names import MemberNames
from hivellm_ort.package.store import UnpackedPackage

__all__ = ["compare", "covered", "field", "listed_digests", "members_of"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = Limits().max_members


def members_of(package: UnpackedPackage) -> dict[str, Member]:
    """Return all files of a package by name, including members that were not unpacked.

    Digests of an archive were computed while unpacking. The files of a folder are read now.

    Raises:
        IntegrityError: The folder holds a link, a device or a name that no archive may have.
        OSError: A file of the folder cannot be read.
    """
    members = (*package.members, *package.skipped) if package.members else _walk(package.root)
    return {member.name: member for member in members}


def field(block: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
    """Return a string field of the integrity block after checking its form.

    Raises:
        IntegrityError: It is missing, is not a string or is malformed.
    """
    value = block.get(key)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise IntegrityError(f"{MANIFEST}: /integrity/{key} is missing or malformed")
    return value


def listed_digests(block: Mapping[str, Any]) -> dict[str, str]:
    """Return the names and digests that an integrity block lists.

    Raises:
        IntegrityError: They are missing or malformed.
    """
    files = block.get("files")
    if not isinstance(files, dict):
        raise IntegrityError(f"{MANIFEST}: /integrity/files is not an object")
    for name, digest in files.items():
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise IntegrityError(
                f"{MANIFEST}: /integrity/files: the digest of {shown(name)} is not a SHA-256 in lower-case hex"
            )
    return files


def covered(listed: Mapping[str, str], members: Mapping[str, Member]) -> dict[str, Member]:
    """Return the members that a signature must cover.

    These are all members except unlisted files that macOS and Windows add. Such files are never unpacked and never
    read, so adding one changes nothing that is used.

    Args:
        listed: Names and digests in the integrity block.
        members: All members by name.
    """
    return {name: member for name, member in members.items() if name in listed or not is_system_file(name)}


def compare(listed: Mapping[str, str], members: Mapping[str, Member]) -> None:
    """Refuse the first file that differs from the list.

    Raises:
        IntegrityError: A file is missing, is not listed, or differs.
    """
    for name in sorted(listed.keys() | members.keys()):
        if name not in members:
            raise IntegrityError(f"{shown(name)} was signed and is missing")
        if name not in listed:
            raise IntegrityError(f"{shown(name)} was added after signing")
        if members[name].sha256 != listed[name]:
            raise IntegrityError(f"{shown(name)} was changed after signing")


def _walk(root: Path) -> Iterator[Member]:
    """Yield the files under a folder. Their names must follow the rules of archives."""
    names = MemberNames()
    for count, (found, folder) in enumerate(files_below(root), start=1):
        if count > _MAX_FILES:
            raise IntegrityError(f"the folder holds more than {_MAX_FILES} files and folders")
        name = member_name(found)
        names.add(name, directory=folder)
        if not folder:
            path = root / name
            yield Member(name, path.stat().st_size, sha256_file(path))
