"""Refuses links and special files in folders that are read in place, before a file is opened.

A link in a folder from a stranger may point to any file, such as a private key of the user who packs the folder.
Reading a named pipe or a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.filenames import shown

__all__ = ["LinkRule", "check_folder", "files_below", "open_file"]

LinkRule = Callable[[Path], str | None]
"""Takes a link; returns why it is refused, as the rest of a sentence, or None for an allowed link."""

_NEVER = "is not followed: put the file itself there"
_LONGEST = 240  # characters of a target in a message
# Windows has neither flag. Files are never named pipes there, but a link made after the check is followed.
_FOLDER = getattr(os, "O_DIRECTORY", 0)
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def check_folder(folder: Path, rule: LinkRule | None = None) -> None:
    """Refuse links, named pipes, devices and sockets anywhere below a folder. The folder itself may be a link.

    Args:
        folder: The folder.
        rule: Decides which links are allowed. Default: none. Allowed links are not followed here.

    Raises:
        IntegrityError: One was found. The message names it and the target of a link.
        LoadError: A folder cannot be listed.
    """
    try:
        for _ in files_below(folder, rule):
            pass
    except LoadError as error:
        raise type(error)(f"{folder}: {error}") from error


def files_below(folder: Path, rule: LinkRule | None = None) -> Iterator[tuple[str, bool]]:
    """Yield the names of all files and folders below a folder, joined by `/`, each with whether it is a folder.

    Args:
        folder: The folder.
        rule: Decides which links are allowed. Default: none. Allowed links are skipped.

    Raises:
        IntegrityError: An entry is neither a file nor a folder, or is a link that is not allowed.
        LoadError: A folder cannot be listed.
    """
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_symlink() or _is_junction(entry.path):
                        fault = _NEVER if rule is None else rule(folder / name)
                        if fault is not None:
                            raise IntegrityError(
                                f"{shown(name)} is a link to {_target(entry.path)}, which {fault}"
                            )
                        continue
                    inner = entry.is_dir(follow_symlinks=False)
                    if not inner and not entry.is_file(follow_symlinks=False):
                        raise IntegrityError(_special(name))
                    if inner:
                        prefixes.append(f"{name}/")
                    yield name, inner
        except OSError as error:
            raise LoadError(
                f"folder {shown(prefix or '.')} cannot be listed: {error.strerror}; check its permissions"
            ) from error


def open_file(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file for reading. A link is not followed, and a named pipe does not block.

    Args:
        path: The file.
        below: A folder that contains it at any depth. No folder between the two may be a link. Windows cannot check
            this.

    Raises:
        IntegrityError: It is a link, a folder, a named pipe, a device or a socket.
        OSError: It cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        if below is None or os.open not in os.supports_dir_fd:
            return os.open(name, flags | _AS_IT_IS)
        *folders, last = path.relative_to(below).parts
        here = os.open(below, os.O_RDONLY)
        try:
            for folder in folders:
                above, here = here, os.open(folder, os.O_RDONLY | _FOLDER | _AS_IT_IS, dir_fd=here)
                os.close(above)
            return os.open(last, flags | _AS_IT_IS, dir_fd=here)
        finally:
            os.close(here)

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except OSError as error:
        # With O_DIRECTORY, a link to a folder is "not a directory".
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or path.is_symlink():
            raise IntegrityError(f"{shown(path.name)} is a link, which {_NEVER}") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise IntegrityError(_special(path.name))
    return file


def _special(name: str) -> str:
    return f"{shown(name)} is a named pipe, a device or a socket, which is never opened: remove it"


def _target(path: str) -> str:
    try:
        target = str(Path(path).readlink())
    except OSError:
        return "an unknown place"
    return ascii(target if len(target) <= _LONGEST else target[:_LONGEST] + "...")


def _is_junction(path: str) -> bool:
    """Return whether a folder is a junction of Windows. Python supports this check since 3.12."""
    known = getattr(os.path, "isjunction", None)
    return known is not None and bool(known(path))
