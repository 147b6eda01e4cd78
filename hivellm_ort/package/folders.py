"""Where the store lives, and how its folders move."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from hivellm_ort.errors import LoadError

__all__ = ["default_root", "has_size", "place", "sweep"]

_STALE_SECONDS = 24 * 60 * 60


def default_root() -> Path:
    """The user's cache folder for packages; `HIVELLM_HOME` overrides it.

    Raises:
        LoadError: The user has no home folder.
    """
    try:
        if home := os.environ.get("HIVELLM_HOME"):
            return Path(home).expanduser()
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            cache = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            cache = Path.home() / "Library" / "Caches"
        else:
            # The XDG specification says to ignore relative values.
            xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
            cache = xdg if xdg.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise LoadError("no home folder to cache packages in; set HIVELLM_HOME to a folder") from error
    return cache / "hivellm" / "ort"


def place(folder: Path, final: Path, work: Path) -> None:
    """Give a complete folder its final name; a damaged one that has it goes to the work folder.

    Raises:
        OSError: A folder cannot be moved, such as one with open files on Windows.
    """
    final.parent.mkdir(exist_ok=True)
    if final.exists():
        final.rename(work / f"old-{final.parent.name}")
    folder.rename(final)


def sweep(scratch: Path) -> None:
    """Remove what killed processes left: folders untouched for a day, longer than any unpacking."""
    with contextlib.suppress(OSError):
        for entry in scratch.iterdir():
            if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of so many bytes."""
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False
