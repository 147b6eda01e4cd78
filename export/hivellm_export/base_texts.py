"""The text files of a base model's folder: JSON and templates, by their byte order mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hivellm_ort.errors import ExportError
from hivellm_ort.textfile import decode_text

__all__ = ["read_object", "read_text", "shown"]

_LONGEST = 100


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
