"""Open a package and show that it takes a while."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.store import Store, UnpackedPackage, open_package

__all__ = ["open_with_progress"]

_LOG = logging.getLogger("hivellm_ort")


def open_with_progress(
    path: Path, store: Store, *, limits: Limits = DEFAULT_LIMITS, checking: Check = "size"
) -> UnpackedPackage:
    """As `open_package`, with a progress bar on a terminal; none where there is no standard error at all.

    The notes on the package are logged as INFO.
    """
    from tqdm import tqdm

    size = path.stat().st_size if path.is_file() else None
    # Shown after a second, on a terminal: a package that was unpacked before takes less.
    with tqdm(
        total=size,
        desc=f"unpacking {path.name}",
        unit="B",
        unit_scale=True,
        disable=None if sys.stderr else True,  # None: unless it is a terminal
        delay=1,
        leave=False,
    ) as bar:
        package = open_package(path, store, limits=limits, check=checking, progress=bar.update)
    for note in package.notes:
        _LOG.info("%s: %s", path, note)
    return package
