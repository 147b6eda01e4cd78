"""Which member names a package may carry.

The rules of POSIX and Windows hold on every platform, so that a package which loads here loads everywhere.
"""

from __future__ import annotations

import re
import unicodedata

from hivellm_ort.contract import WEIGHTS_FILE
from hivellm_ort.errors import IntegrityError

__all__ = [
    "MAX_NAME_BYTES",
    "MemberNames",
    "is_system_file",
    "is_weights",
    "member_name",
    "never_loaded",
    "shown",
]

MAX_NAME_BYTES = 240
"""Longest member name, in UTF-8 bytes: below every file system's limit for one part of a path."""

_FORBIDDEN = frozenset('\\:<>"|?*')
# Controls, invisible format characters, surrogates (bytes that were not UTF-8), line and paragraph ends.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
# Endings of files that are pickles or may hold one (NumPy's and HDF5 files can), or that a system may run.
_PICKLES = "bin pt pth pkl pickle ckpt joblib npy npz h5 hdf5 keras"
_LIBRARIES = "dll dylib pyd"
_PROGRAMS = "exe com scr msi jar class"
_SCRIPTS = "sh bash command bat cmd ps1 psm1 vbs js hta lnk py pyc pyo pyw pyz"
_NEVER_LOADED = re.compile(
    rf"\.(?:{'|'.join([*_PICKLES.split(), *_LIBRARIES.split(), *_PROGRAMS.split(), *_SCRIPTS.split()])}"
    r"|so(?:\.\d+)*)\Z",
    re.IGNORECASE,
)
# The weights of a bundle: read as numbers, whatever their ending says.
_BUNDLE_WEIGHTS = re.compile(rf"onnx/(?:[^/]+/)?{re.escape(WEIGHTS_FILE)}\Z")
# Files that may be as large as a model; a checkpoint's are among them, though they are left out.
_WEIGHTS = re.compile(
    rf"(?:\.(?:{'|'.join(_PICKLES.split())}|safetensors|gguf|onnx|data)|_data)\Z", re.IGNORECASE
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


def never_loaded(name: str) -> bool:
    """Whether a member is left out because its ending says pickle, program or script."""
    # ONNX Runtime reads the base's external data from this one name; it is plain tensors.
    return _NEVER_LOADED.search(name) is not None and _BUNDLE_WEIGHTS.match(name) is None


def is_system_file(name: str) -> bool:
    """Whether a file is one that macOS or Windows adds beside others.

    These are `._NAME`, `.DS_Store`, `Thumbs.db` and `desktop.ini`, in any folder. Such a file is never unpacked and
    never read, so a signature need not cover it.
    """
    last = name.rpartition("/")[2]
    return last.startswith(_APPLE_DOUBLE) or last.lower() in _SYSTEM_FILES


def is_weights(name: str) -> bool:
    """Whether a file may be as large as a model; every other file is a text, a tokenizer or the like."""
    return _WEIGHTS.search(name) is not None and not is_system_file(name)


class MemberNames:
    """The names met so far in one archive, to refuse those that one file system could not tell apart.

    Two names collide when they differ only in case or in Unicode normalisation, or when one is a file and
    the other a folder.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, bool]] = {}

    def add(self, name: str, *, directory: bool = False) -> bool:
        """Note a checked name and the folders above it.

        Args:
            name: A name that `member_name` returned.
            directory: Whether the member is a folder.

        Returns:
            Whether the name is new; False for exactly the same name and kind again.

        Raises:
            IntegrityError: The name collides with an earlier one.
        """
        parts = name.split("/")
        for depth in range(1, len(parts)):
            self._note("/".join(parts[:depth]), directory=True)
        return self._note(name, directory=directory)

    def _note(self, name: str, *, directory: bool) -> bool:
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
        if folded not in self._seen:
            self._seen[folded] = (name, directory)
            return True
        other, other_directory = self._seen[folded]
        if (other, other_directory) == (name, directory):
            return False
        kind, other_kind = ("folder" if is_folder else "file" for is_folder in (directory, other_directory))
        raise IntegrityError(
            f"{kind} {shown(name)} collides with {other_kind} {shown(other)}; "
            "rename one of them and pack the archive again"
        )


def _fault(name: str) -> str | None:
    """Why a name is not allowed, or None."""
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
