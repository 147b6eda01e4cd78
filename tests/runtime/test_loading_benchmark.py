"""The benchmark of loading tells the parts of a load; how long they take is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.running import Packages

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loading.py"


def test_every_part_of_a_load_is_told(packages: Packages) -> None:
    """Package, base and session take some time each, cold and warm, and opening is part of the package."""
    command = [sys.executable, str(SCRIPT), str(packages.lora), "--rounds", "1", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {"open", "package", "base", "session"} == set(report)
    assert [] == [name for name, row in report.items() if min(row["cold"], row["warm"]) <= 0]
    assert report["open"]["cold"] < report["package"]["cold"]
