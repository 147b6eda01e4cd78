"""Fuzz the readers of everything that a stranger may write: `python tests/fuzz/fuzzing.py all --seconds 360`.

Each target runs in a process of its own, which a hang or a crash ends. With atheris installed, inputs are chosen by
the code that they reach; else they are mutations of the corpus. The status is 1 when there are findings.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
_GRACE = 60  # seconds for the last input, and for the end of the process
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.py"))


def main() -> int:
    """Run targets one after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=["all", *TARGETS], nargs="+")
    parser.add_argument("--seconds", type=float, default=60, help="of mutations, for each target")
    parser.add_argument("--seed", type=int, help="at random by default")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="a folder")
    parser.add_argument("--no-guidance", action="store_true", help="mutations only, even with atheris")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    if options.within:
        return _within(options.target[0], options.seconds, seed, options.findings, options)
    names = TARGETS if "all" in options.target else options.target
    guided = not options.no_guidance and importlib.util.find_spec("atheris") is not None
    found = [_run(name, options.seconds, seed, options.findings / name, guided) for name in names]
    return int(any(found))


def _within(name: str, seconds: float, seed: int, folder: Path, options: argparse.Namespace) -> int:
    """One target, in this process."""
    from attempts import Attempts, guided, limit_memory, load, loop

    if options.no_guidance:
        module = load(name)
        limit_memory()
        attempts = Attempts(module.target, folder)
        loop(module, attempts, seconds=seconds, seed=seed, known=options.known)
        attempts.say()
        return 0
    import atheris

    # What is imported later, in the middle of a function, counts too.
    with atheris.instrument_imports(include=["hivellm_ort", "hivellm_export"]):
        module = load(name)
        limit_memory()
        guided(module, Attempts(module.target, folder), seconds=seconds, seed=seed, folder=folder)
    return 0


def _run(name: str, seconds: float, seed: int, folder: Path, guided: bool) -> bool:
    """Run one target until its time is over, again after what ends its process; whether there are findings."""
    folder.mkdir(parents=True, exist_ok=True)
    begin, end, inputs, started = time.monotonic(), None, 0, 0
    while end is None or time.monotonic() < end:
        left = seconds if end is None else end - time.monotonic()
        command = [sys.executable, __file__, name, "--within", "--seconds", str(left)]
        command += ["--seed", str(seed + started), "--findings", str(folder)]
        command += ([] if started else ["--known"]) + ([] if guided else ["--no-guidance"])
        (folder / "status").unlink(missing_ok=True)
        (folder / "running").unlink(missing_ok=True)
        try:
            process = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=left + _GRACE)
        except subprocess.TimeoutExpired:
            break  # an input that hangs ends the process sooner: this is atheris, which at times does not end
        started += 1
        end = end or begin + seconds
        with contextlib.suppress(OSError, ValueError):
            inputs += json.loads((folder / "status").read_text())["inputs"]
        if process.returncode == 0:
            break
        if not (folder / "running").exists():  # it did not begin
            sys.stderr.buffer.write(process.stderr)
            return True
        _keep_last(folder, process)
    shutil.rmtree(folder / "reached", ignore_errors=True)
    for left in ("status", "running"):
        (folder / left).unlink(missing_ok=True)
    found = sorted(path.stem for path in folder.glob("*.txt"))
    how = "guided" if guided else "mutations"
    print(
        f"{name}: {inputs} inputs, {time.monotonic() - begin:.0f} s, {how}, seed {seed}, {len(found)} findings"
    )
    for one in found:
        print(f"  {folder / one}: {(folder / one).with_suffix('.txt').read_text().splitlines()[0]}")
    return bool(found)


def _keep_last(folder: Path, process: subprocess.CompletedProcess[bytes]) -> None:
    """Keep the input that was running when the process ended."""
    import hashlib

    data = (folder / "running").read_bytes()
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    text = process.stderr.decode(errors="replace")[-4000:]
    path.with_suffix(".txt").write_text(f"ended with status {process.returncode}\n\n{text}", encoding="utf-8")
    print(f"finding: the process ended: {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
