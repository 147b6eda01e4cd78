"""The tiny packages of the runtime tests, variants of them, and a watchdog: a test that hangs ends the run."""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

_RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
_BENCHMARKS = _RUNTIME.parents[1] / "benchmarks"
sys.path[:0] = [str(_RUNTIME), str(_RUNTIME.parent / "export"), str(_BENCHMARKS)]
_spec = importlib.util.spec_from_file_location("runtime_fixtures", _RUNTIME / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

from managing import STRESS, Variants  # noqa: E402
from running import Packages  # noqa: E402

packages = _fixtures.packages


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
    """Ends the run, with every thread's stack, where a test takes longer than it ever should."""
    faulthandler.dump_traceback_later(3000 if STRESS else 240, exit=True, file=_terminal)
    yield
    faulthandler.cancel_dump_traceback_later()
