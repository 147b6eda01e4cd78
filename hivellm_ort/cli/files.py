"""Names of files and folders on the command line, and the texts in them."""

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
    """A path that has a name: `"$FOLDER"` of a variable that is not set would be the current folder.

    Args:
        options: those of `click.Path`; a command gets a `Path`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name."""
        if isinstance(value, str) and not value:
            self.fail("the name is empty: name a file or folder, the current one as '.'", param, ctx)
        return super().convert(value, param, ctx)


def read_text(path: Path) -> str:
    """The text of a file, or of what another program writes into a pipe, to its end.

    Raises:
        OSError: it cannot be read, or is larger than 64 MiB.
        UnicodeDecodeError: it is not in UTF-8 or the encoding of its byte order mark.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise OSError(errno.EFBIG, f"larger than {_MAX_TEXT >> 20} MiB", os.fspath(path))
    return decode_text(data)
