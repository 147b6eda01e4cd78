"""The files of a package with their digests, and the list of them in `integrity.files`."""

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
from hivellm_ort.package.names import MemberNames
from hivellm_ort.package.store import UnpackedPackage

__all__ = ["compare", "covered", "field", "listed_digests", "members_of"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = Limits().max_members


def members_of(package: UnpackedPackage) -> dict[str, Member]:
    """Return all files of a package by name, those that were left out of the unpacked archive included.

    An archive's digests are those taken when it was unpacked; a folder's files are read now.

    Raises:
        IntegrityError: The folder holds a link, a device or a name that no archive may have.
        OSError: A file of the folder cannot be read.
    """
    members = (*package.members, *package.skipped) if package.members else _walk(package.root)
    return {member.name: member for member in members}


def field(block: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
    """Return a field of the integrity block that must have a certain form.

    Raises:
        IntegrityError: It has another form, is no string or is missing.
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
        raise IntegrityError(f"{MANIFEST}: /integrity/files is no object")
    for name, digest in files.items():
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise IntegrityError(
                f"{MANIFEST}: /integrity/files: the digest of {shown(name)} is no SHA-256 in lower-case hex"
            )
    return files


def covered(listed: Mapping[str, str], members: Mapping[str, Member]) -> dict[str, Member]:
    """Return the members that a signature must cover.

    Those are all but the files that macOS and Windows add and the signature does not list. These are never unpacked
    and never read, also in a folder opened in place, so whoever adds one changes nothing that is used.

    Args:
        listed: Names and digests in the integrity block.
        members: All members by name.
    """
    return {name: member for name, member in members.items() if name in listed or not is_system_file(name)}


def compare(listed: Mapping[str, str], members: Mapping[str, Member]) -> None:
    """Find the first file that is not as listed.

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
    """Yield the files under a folder, under the rules for the names of an archive."""
    names = MemberNames()
    for count, (found, folder) in enumerate(files_below(root), start=1):
        if count > _MAX_FILES:
            raise IntegrityError(f"the folder holds more than {_MAX_FILES} files and folders")
        name = member_name(found)
        names.add(name, directory=folder)
        if not folder:
            path = root / name
            yield Member(name, path.stat().st_size, sha256_file(path))
