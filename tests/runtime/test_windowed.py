"""Applications without a console: pythonw and frozen windows have no standard output and no standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.running import PROMPT, Packages

# Unpacking lasts longer than a progress bar waits before it shows itself.
SCRIPT = """
import json, pathlib, sys, time, warnings
sys.stdin = sys.stdout = sys.stderr = None

def main(package, cache, prompt):
    from hivellm_ort import Expert
    from hivellm_ort.loading import opening

    real = opening.open_package
    def slow(*arguments, progress, **options):
        def told(count):
            shown.append(count)
            time.sleep(1.1 if len(shown) < 3 else 0)
            progress(count)
        return real(*arguments, progress=told, **options)

    shown = []
    opening.open_package = slow
    warnings.warn("of a library")
    with Expert.load(package, cache_dir=cache, threads=1) as expert:
        tokens = expert.generate(prompt, max_tokens=16).tokens
    return {"tokens": tokens, "shown": len(shown), "verdict": expert.verdict.status}

*arguments, report = sys.argv[1:]
try:
    found = main(*arguments)
except BaseException as error:
    found = {"error": repr(error)}
pathlib.Path(report).write_text(json.dumps(found))
"""


def test_no_standard_error(packages: Packages, tmp_path: Path) -> None:
    """A package is unpacked, its missing signature is warned of, and it answers as anywhere."""
    report = tmp_path / "report.json"
    arguments = [str(packages.lora), str(tmp_path / "cache"), PROMPT, str(report)]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], timeout=120, check=True)
    with packages.load("lora") as expert:
        expected = expert.generate(PROMPT, max_tokens=16)
    found = json.loads(report.read_text())
    assert found.pop("shown", 0) > 2, found
    assert {"tokens": list(expected.tokens), "verdict": "unsigned"} == found
