"""Links in a base model's folder: they may lead to files of the folder, and of the hub's cache that holds it."""

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
    """Refuse what is below a base model's or tokenizer's folder and leads out of it, or is no file.

    The hub's cache keeps the files of `models--ORG--NAME/snapshots/COMMIT` as links to `models--ORG--NAME/blobs`:
    these are allowed.

    Raises:
        ExportError: there is such a link, a named pipe, a device or a socket; the message names it.
    """
    try:
        check_folder(folder, _judge(folder))
    except LoadError as error:
        raise ExportError(str(error)) from error


def check_link(path: Path) -> None:
    """Refuse one file that is a link, as `check_links` does for all of a folder.

    Raises:
        ExportError: it leads out of its folder.
    """
    fault = _judge(path.parent)(path) if path.is_symlink() else None
    if fault is not None:
        raise ExportError(f"{path}: is a link to {str(path.readlink())!a}, which {fault}")


def _judge(folder: Path) -> Callable[[Path], str | None]:
    own = folder.resolve()
    # Of a snapshot in the hub's cache, or a folder in one.
    above = (path.parent for path in own.parents if path.name == "snapshots")
    repository = next((path for path in above if path.name.startswith("models--")), None)

    def judge(link: Path) -> str | None:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # a circle is one or the other, by the version of Python
            return "leads nowhere: remove it, or put the file there"
        if target.is_relative_to(own):
            return None
        if repository is not None and target.is_relative_to(repository) and target.is_file():
            return None
        return "is outside of the folder: put the file itself there"

    return judge


def read_text(path: Path) -> str:
    """The text of a file, in UTF-8 or as its byte order mark says.

    Raises:
        ExportError: it cannot be read, or is no text.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path.name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path.name}: not a text in UTF-8 ({error}): save it as such") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ExportError: as `read_text`, or it is no JSON object.
    """
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path.name}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ExportError(f"{path.name}: must be a JSON object")
    return document


def shown(value: Any) -> str:
    """A value of a file, as Python writes it, on one line of a message: at most 100 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
