"""The wheel in an environment of its own, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.extras import HAS_EXPORT
from support.running import PROMPT, Packages

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "slim.py"


def test_slim_environment_runs_a_package_without_torch(packages: Packages) -> None:
    """`hivellm-ort[cpu]` has none of the exporter's libraries, and gives the same answers, also under a grammar."""
    if not HAS_EXPORT:
        pytest.skip("this environment is such a one already")
    command = [sys.executable, str(SCRIPT), "--package", str(packages.lora), "--prompt", PROMPT, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    report = json.loads(done.stdout)
    with packages.load("lora") as expert:
        expected = expert.generate(PROMPT, max_tokens=16)
    assert [] == report["forbidden"]
    assert list(expected.tokens) == report["result"]["tokens"]
    assert expected.text == report["result"]["text"]
    assert report["constrained"]["text"] in ('{"tool": "search"}', '{"tool": "read"}')
