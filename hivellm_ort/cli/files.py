"""Files and folders named on the command line, and the texts in them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click

from hivellm_ort.textfile import decode_text

__all__ = ["NamedPath", "read_text"]

_MAX_TEXT = 64 << 20


class NamedPath(click.Path):
    """A path option that refuses an empty name.

    `"$FOLDER"` is empty if the variable is not set, and `Path("")` is the current folder.

    Args:
        options: Options of `click.Path`. A command gets a `Path`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert to a `Path`; an empty name is an error."""
        if isinstance(value, str) and not value:
            self.fail("the name is empty: name a file or folder, the current one as '.'", param, ctx)
        return super().convert(value, param, ctx)


def read_text(path: Path) -> str:
    """Read a text file, or a pipe until its end.

    Raises:
        OSError: The file cannot be read, or is larger than 64 MiB.
        UnicodeDecodeError: The text is not in UTF-8 or the encoding of its byte order mark.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise OSError(errno.EFBIG, f"larger than {_MAX_TEXT >> 20} MiB", os.fspath(path))
    return decode_text(data)
