"""The tiny packages of the runtime tests, variants of them, and a watchdog: a test that hangs ends the run."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import TextIO

import pytest
from managing import STRESS, Variants
from support.packages import packages
from support.running import Packages

__all__ = ["packages"]


@pytest.fixture(scope="session")
def variants(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """Thin experts on the bases of the packages; see `Variants`."""
    return Variants(packages, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="session")
def _terminal(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal = os.fdopen(os.dup(2), "w")
    with terminal:
        yield terminal


@pytest.fixture(autouse=True)
def _watchdog(_terminal: TextIO) -> Iterator[None]:
    """Ends the run with every thread's stack if a test takes far too long."""
    faulthandler.dump_traceback_later(3000 if STRESS else 240, exit=True, file=_terminal)
    yield
    faulthandler.cancel_dump_traceback_later()
