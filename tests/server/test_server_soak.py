"""The soak of the server runs, and finds what does not hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from harness.server_clients import ServerClient


def test_a_short_run_holds() -> None:
    """For a few seconds every answer equals that of the request alone, and nothing is left in memory."""
    command = [sys.executable, str(BENCHMARKS / "server_soak.py"), "--minutes", "0.1", "--clients", "4"]
    done = subprocess.run(
        [*command, "--percent", "50", "--threads", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (0, [], []) == (done.returncode, report["faults"], report["wrong"])
    assert {"whole", "streams"} <= set(report["counts"])


@pytest.mark.parametrize(("text", "wrong"), [("yes", 0), ("no", 1)])
def test_a_wrong_answer_is_found(text: str, wrong: int) -> None:
    """An answer that differs from that of the request alone is reported."""
    key = ("sql", "a", "greedy")
    client = ServerClient(httpx.AsyncClient(), {key: [("yes", "stop")]}, 0)
    client._check(key, text, "stop", "whole")
    assert wrong == len(client.wrong)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"files": 8}, "files grew from 7 to 8"),
        ({"threads": 99}, "threads grew from 5 to 99"),
        ({"memory": 110}, "memory grew by 10.0 %"),
        ({"left": {"queued_requests": 1.0}}, "queued_requests: 1 left"),
        ({}, None),
    ],
)
def test_growth_is_found(change: dict[str, Any], fault: str | None) -> None:
    """What a server has at the end beyond what it had before is a fault."""
    from server_soak import faults

    before = {"memory": 100, "files": 7, "threads": 5, "left": {"queued_requests": 0.0}}
    report = {"number of wrong": 0, "after a fifth": before, "at the end": {**before, **change}}
    assert ([] if fault is None else [fault]) == faults(report, 5)
