"""The keys that clients must have: from a file, or a variable of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from hivellm_ort.errors import OptionError
from hivellm_ort.textfile import decode_text

__all__ = ["KEYS_VARIABLE", "read_keys"]

KEYS_VARIABLE = "HIVELLM_API_KEYS"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of the file, else of the variable `HIVELLM_API_KEYS`, where commas separate them.

    Args:
        file: has one key a line; empty lines, and those that begin with `#`, are none.

    Raises:
        OSError: the file cannot be read.
        OptionError: it has no key, or is no text.
    """
    if file is None:
        return tuple(key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip())
    try:
        lines = [line.strip() for line in decode_text(file.read_bytes()).splitlines()]
    except UnicodeDecodeError as error:
        raise OptionError(f"{file}: it is no text in UTF-8: write one key a line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise OptionError(f"{file}: there is no key in it; write one a line")
    return keys
