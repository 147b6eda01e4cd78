"""The libraries that only an export needs: whether they are installed, and what they may log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from hivellm_ort.errors import ExportError

__all__ = ["only_errors", "prepare_libraries"]

_NEEDED = ("torch", "transformers", "peft", "optimum", "onnx_ir", "gguf")


def prepare_libraries() -> None:
    """Check that the libraries are installed, and make them log as the commands do.

    Progress bars of transformers are shown only on a terminal. Its warnings go to the command line's own handler,
    which escapes control characters in the texts of a model.

    Raises:
        ExportError: A library is not installed.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"the exporter needs {', '.join(missing)}: pip install 'hivellm-ort[export]'")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


@contextlib.contextmanager
def only_errors(*names: str) -> Iterator[None]:
    """Hide warnings of some loggers for a while.

    Args:
        names: Names of the loggers. Their errors are still logged.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
