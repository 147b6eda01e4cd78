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
"""A path as a string, or as an object that stands for one, such as a `pathlib.Path`."""


def without_folders(text: str, folders: Iterable[StrPath] = ()) -> str:
    """A message without where Python, the user's files and other folders are: each becomes `...`.

    Args:
        text: any text.
        folders: more absolute folders to leave out.
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
