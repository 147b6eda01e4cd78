"""Libraries that warn about what is meant here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["only_errors"]


@contextlib.contextmanager
def only_errors(*names: str) -> Iterator[None]:
    """Let the loggers of these names tell errors alone for a while."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
