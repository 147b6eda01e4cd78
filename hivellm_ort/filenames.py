"""Checks names of files in packages.

The rules of POSIX and of Windows apply on every platform: a package that loads here loads everywhere.
"""

from __future__ import annotations

import re
import unicodedata

from hivellm_ort.errors import IntegrityError

__all__ = ["MAX_NAME_BYTES", "is_system_file", "member_name", "shown"]

MAX_NAME_BYTES = 240
"""Longest member name, in UTF-8 bytes: below every file system's limit for one part of a path."""

_FORBIDDEN = frozenset('\\:<>"|?*')
# Controls, invisible format characters, surrogates (bytes that were not UTF-8), line and paragraph ends.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
# What Finder and Explorer keep in a folder. AppleDouble files, `._NAME`, hold what macOS knows of the file NAME.
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_APPLE_DOUBLE = "._"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def shown(name: str) -> str:
    """Quote a name that may be hostile for an error message: escaped, and cut to 80 characters."""
    return ascii(name if len(name) <= 80 else name[:80] + "...")


def member_name(raw: str) -> str:
    """Check a member's name and strip one leading `./`.

    Args:
        raw: The name as the archive has it, without a directory's trailing slash.

    Returns:
        The relative name, its parts joined by `/`.

    Raises:
        IntegrityError: The name is not allowed.
    """
    name = raw.removeprefix("./")
    fault = _fault(name)
    if fault is not None:
        raise IntegrityError(f"member {shown(raw)}: {fault}; rename it and pack the archive again")
    return name


def is_system_file(name: str) -> bool:
    """Return whether macOS or Windows added a file by itself.

    These are `._NAME`, `.DS_Store`, `Thumbs.db` and `desktop.ini`, in any folder. Such a file is never unpacked and
    never read, so a signature need not cover it.
    """
    last = name.rpartition("/")[2]
    return last.startswith(_APPLE_DOUBLE) or last.lower() in _SYSTEM_FILES


def _fault(name: str) -> str | None:
    """Return why a name is not allowed, or None."""
    if name.startswith("/"):
        return "absolute names are not allowed"
    if _DRIVE.match(name):
        return "names with a drive are not allowed"
    if "\\" in name:
        return "a backslash is not allowed in names, folders are joined by /"
    bad = next((c for c in name if c in _FORBIDDEN or unicodedata.category(c) in _FORBIDDEN_CATEGORIES), None)
    if bad is not None:
        return f"character {bad!a} is not allowed in names"
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"the name has {size} bytes, at most {MAX_NAME_BYTES} are allowed"
    return next((fault for part in name.split("/") if (fault := _part_fault(part)) is not None), None)


def _part_fault(part: str) -> str | None:
    if part in ("", ".", ".."):
        return f"the part {part!r} is not allowed in names"
    if part.endswith((".", " ")):
        return f"{shown(part)} ends with a dot or a space, which Windows drops"
    if part.split(".")[0].rstrip(" ").upper() in _DEVICES:
        return f"{shown(part)} is a device name on Windows"
    return None
