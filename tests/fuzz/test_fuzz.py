"""Whatever a stranger writes loads whole, or is refused with a typed error, in bounded time and memory.

`HIVELLM_FUZZ_SECONDS` sets the seconds of mutations of each target. `python tests/fuzz/fuzzing.py` runs them long.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import attempts
import pytest
from fuzzing import FOLDER, TARGETS
from mutations import Mutation, json_changed, words_changed
from support.extras import requires_export

SECONDS = os.environ.get("HIVELLM_FUZZ_SECONDS", "3")
NEED_EXPORT = ("decoder", "gguf")


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, tmp_path: Path) -> None:
    """The corpus, and mutations of it that are the same every time, give no finding."""
    if name in NEED_EXPORT:
        requires_export()
    command = [
        sys.executable,
        str(FOLDER / "fuzzing.py"),
        name,
        "--seconds",
        SECONDS,
        "--seed",
        "1",
        "--no-guidance",
    ]
    result = subprocess.run(
        [*command, "--findings", str(tmp_path)], capture_output=True, text=True, encoding="utf-8", check=False
    )
    details = [path.read_text(encoding="utf-8")[:3000] for path in sorted(tmp_path.rglob("*.txt"))]
    assert (0, []) == (result.returncode, details), f"{result.stdout}{result.stderr[-3000:]}"


def test_what_a_finding_is(tmp_path: Path) -> None:
    """Other errors than typed ones are kept, once for each place, shortened; so are errors that say nothing."""

    def target(data: bytes) -> None:
        with attempts.refusing(KeyError):
            if data[:1] == b"t":
                raise KeyError("typed")
            if data[:1] == b"e":
                raise ValueError("")
            if b"xy" in data:
                raise ValueError("x")

    tried = attempts.Attempts(target, tmp_path)
    for data in (b"t", b"aaxyaaaaaaaaaa", b"bxyb", b"e12"):
        tried.run(data)
    found = {path.read_text().splitlines()[0].split(" at ")[0]: path for path in tmp_path.glob("*.txt")}
    assert 2 == len(list(tmp_path.glob("*.txt")))
    assert {"ValueError"} == set(found)
    assert {b"xy", b"e"} == {path.with_suffix("").read_bytes() for path in tmp_path.glob("*.txt")}


@pytest.mark.parametrize("change", [json_changed(["a", "é"]), words_changed(["b", "["])])
def test_mutations_are_the_same_every_time(change: Mutation) -> None:
    """One seed makes one list of inputs."""
    data = b'{"a": [1, {"b": null}], "c": "d"}'
    one, other = ([change(data, random.Random(seed)) for seed in range(300)] for _ in range(2))
    assert one == other
    assert 100 < len(set(one))
