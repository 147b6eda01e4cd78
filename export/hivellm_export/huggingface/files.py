"""The files of a base model's folder: links that may be followed, JSON and text.

A link may lead to a file of the same folder, or of the hub's cache that holds the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hivellm_ort.errors import ExportError, LoadError
from hivellm_ort.package.links import check_folder
from hivellm_ort.textfile import decode_text

__all__ = ["check_link", "check_links", "read_object", "read_text", "shown"]

_LONGEST = 100


def check_links(folder: Path) -> None:
    """Refuse links out of the folder of a base model or tokenizer, and special files in it.

    The hub's cache stores the files of `models--ORG--NAME/snapshots/COMMIT` as links to `models--ORG--NAME/blobs`:
    these are allowed.

    Raises:
        ExportError: There is such a link, a named pipe, a device or a socket. The message names it.
    """
    try:
        check_folder(folder, _judge(folder))
    except LoadError as error:
        raise ExportError(str(error)) from error


def check_link(path: Path) -> None:
    """Check one file as `check_links` checks a folder.

    Raises:
        ExportError: The file is a link out of its folder.
    """
    fault = _judge(path.parent)(path) if path.is_symlink() else None
    if fault is not None:
        raise ExportError(f"{path}: is a link to {str(path.readlink())!a}, which {fault}")


def _judge(folder: Path) -> Callable[[Path], str | None]:
    own = folder.resolve()
    # For a snapshot in the hub's cache, or a folder below one.
    above = (path.parent for path in own.parents if path.name == "snapshots")
    repository = next((path for path in above if path.name.startswith("models--")), None)

    def judge(link: Path) -> str | None:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # for a circle, the type depends on the version of Python
            return "leads nowhere: remove it, or put the file there"
        if target.is_relative_to(own):
            return None
        if repository is not None and target.is_relative_to(repository) and target.is_file():
            return None
        return "is outside of the folder: put the file itself there"

    return judge


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding of its byte order mark.

    Raises:
        ExportError: The file cannot be read, or is not text.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path.name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path.name}: not UTF-8 ({error}): save it as UTF-8") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ExportError: The file cannot be read, or holds something else.
    """
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path.name}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ExportError(f"{path.name}: must be a JSON object")
    return document


def shown(value: Any) -> str:
    """Write a value from a file for a message: as Python does, at most 100 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
