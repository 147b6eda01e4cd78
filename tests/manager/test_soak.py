"""The soak run in small: it holds, and what it is to find is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.running import Packages

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
SHORT = ["--generations", "60", "--threads", "6", "--percent", "25", "--no-cleaning", "--json"]

# The faults that `python -c` runs the command with: memory and objects that stay, wrong tokens where several requests
# share a pass, and a request that never ends.
FAULTS = """
import sys, time
sys.path.insert(0, sys.argv[1])
del sys.argv[1]
import numpy
import soak
from harness.clients import Client
from hivellm_ort.serving.generation import Generation
from hivellm_ort.serving.row import Row

kept, end, read = [], Generation._end, Row.read

def leak(self, step):
    kept.append((self, b"x" * 1_000_000))
    end(self, step)

Generation._end = leak
Row.read = lambda self, scores: read(self, numpy.roll(scores, 1))
Client._pin = lambda self, name: time.sleep(600)
soak.main()
"""


def ended(command: list[str], packages: Packages, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and standard error of a short run."""
    paths = [str(path) for path in (packages.lora, packages.dora, packages.short)]
    done = subprocess.run(
        [sys.executable, *command, *paths, *SHORT, *options], capture_output=True, text=True, timeout=200
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_short_soak_holds(packages: Packages, tmp_path: Path) -> None:
    """Every answer is right, nothing is left, nothing is said, and the curve of the memory is drawn."""
    plot = tmp_path / "memory.svg"
    options = ["--loads", "10", "--streams", "40", "--minutes", "0.1", "--plot", str(plot)]
    status, report, stderr = ended([str(SOAK)], packages, *options)
    assert [] == report["faults"]
    assert (0, "") == (status, stderr)
    assert {"generations", "loads", "streams"} == set(report["memory"])
    assert report["stress"]["finished"] > 50
    assert 0 == report["stress"]["wrong answers"]
    assert "<svg" in plot.read_text()


@pytest.fixture(scope="module")
def faulty(packages: Packages) -> tuple[int, dict[str, Any], str]:
    """A short run of a library that leaks, mixes answers up and hangs."""
    options = ["--loads", "0", "--streams", "0", "--minutes", "0.5", "--hang", "5"]
    return ended(["-c", FAULTS, str(SOAK.parent)], packages, *options)


def test_a_fault_is_the_exit_status(faulty: tuple[int, dict[str, Any], str]) -> None:
    """A script that calls it learns of it."""
    assert 1 == faulty[0]


@pytest.mark.parametrize(
    "line",
    [
        "generations: resident memory changed by +",
        "more objects of hivellm_ort.serving.generation.Generation in 54 operations",
        "stress: wrong answer: expert-",
        "threads hang, for ",
    ],
)
def test_what_is_wrong_is_found(faulty: tuple[int, dict[str, Any], str], line: str) -> None:
    """A leak by its bytes and by its objects, an answer that is not the one of the request alone, a hang."""
    assert 1 <= sum(line in fault for fault in faulty[1]["faults"])


def test_a_hang_shows_where_it_is(faulty: tuple[int, dict[str, Any], str]) -> None:
    """The stacks of all threads are on standard error."""
    assert "Current thread" in faulty[2]
    assert "_attempt" in faulty[2]
