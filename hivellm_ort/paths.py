"""The type of paths that public functions take."""

from __future__ import annotations

import os

__all__ = ["StrPath"]

StrPath = str | os.PathLike[str]
"""A path as a string, or as an object that stands for one, such as a `pathlib.Path`."""
