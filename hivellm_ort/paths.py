"""The type of paths that public functions take, and texts without the folders of this machine."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

__all__ = ["StrPath", "without_folders"]

StrPath = str | os.PathLike[str]
"""A path as a string, or as an object such as a `pathlib.Path`."""


def without_folders(text: str, folders: Iterable[StrPath] = ()) -> str:
    """Return a message with `...` instead of the folders of Python, of the user and other given folders.

    Args:
        text: Any text.
        folders: Further absolute folders to replace.
    """
    found = {
        *sysconfig.get_paths().values(),
        sys.prefix,
        sys.base_prefix,
        *(str(Path(folder)) for folder in folders),
    }
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        found.add(str(Path.home()))
    for folder in sorted(found, key=len, reverse=True):
        if len(Path(folder).parts) > 1:
            text = text.replace(folder, "...")
    return text
