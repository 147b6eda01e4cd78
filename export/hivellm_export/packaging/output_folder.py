"""The output folder: an export works beside it, and moves complete results there, one export at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hivellm_ort.contract import DECODER_JSON
from hivellm_ort.errors import ExpertError, ExportError

__all__ = ["built_beside"]


@contextlib.contextmanager
def built_beside(output: Path, *, force: bool) -> Iterator[Path]:
    """Give a working folder. At the end, what is in its `products` moves to `output`.

    The working folder is in `.<name>.export` beside the output, which is locked. If a killed export left one, the
    next export removes it.

    Args:
        output: The output folder.
        force: Whether to replace files of the same names in an output folder that is not empty.

    Raises:
        ExportError: Another export writes to `output`, it is not empty and `force` is false, or it cannot be written.
            Then nothing in it was changed.
    """
    place = Path(os.path.realpath(output))  # two paths may name one folder
    made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    beside = place.parent / f".{place.name}.export"
    lock = FileLock(beside / "lock", timeout=0)
    try:
        with _as_export_errors(output):
            beside.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield from _locked(output, place, beside / "work", force)
        finally:
            shutil.rmtree(beside / "work", ignore_errors=True)
            _release(lock, beside)
    except BaseException:
        for folder in (beside, *made):
            with contextlib.suppress(OSError):  # another export or program uses it
                folder.rmdir()
        raise


def _locked(output: Path, place: Path, work: Path, force: bool) -> Iterator[Path]:
    if place.exists() and (not place.is_dir() or any(place.iterdir())) and not force:
        raise ExportError(
            f"{output} exists and is not an empty folder: choose another --output, or use --force"
        )
    with _as_export_errors(output):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        _move(work / "products", place, work / "replaced")


@contextlib.contextmanager
def _as_export_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except ExpertError:  # some are also OSErrors
        raise
    except Timeout as error:
        raise ExportError(
            f"{output}: another export writes there now: wait until it ends, or choose another --output"
        ) from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{output}: cannot be written: {reason}") from error


def _release(lock: FileLock, beside: Path) -> None:
    """Release the lock and remove its file. The file goes first if possible: later it may be another export's."""
    file = beside / "lock"
    with contextlib.suppress(OSError):
        file.unlink()
    lock.release()
    with contextlib.suppress(OSError):
        beside.rmdir()


def _move(products: Path, place: Path, replaced: Path) -> None:
    """Move products to their place. If the process is killed, each is the old one, the new one, or missing.

    A bundle is several files, and no bundle without `decoder.json`: this is removed first and written last.
    """
    with contextlib.suppress(OSError):  # not empty
        place.rmdir()
    if not place.exists():
        products.rename(place)
        return
    replaced.mkdir()
    if (products / DECODER_JSON).exists() and (place / DECODER_JSON).exists():
        (place / DECODER_JSON).rename(replaced / DECODER_JSON)
    for product in sorted(products.iterdir(), key=lambda path: (path.name == DECODER_JSON, path.name)):
        old = place / product.name
        if old.is_dir() or (product.is_dir() and old.exists()):
            old.rename(replaced / product.name)
        product.replace(old)
