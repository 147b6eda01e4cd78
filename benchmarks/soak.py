"""Whether a manager that runs for long stays right, alive and small.

    python benchmarks/soak.py [PACKAGE …] [--minutes 10] [--threads 32] [--generations 5000] [--loads 500]
        [--streams 500] [--seed 0] [--percent 2] [--hang 120] [--no-cleaning] [--plot FILE] [--json]

Without packages it makes six tiny experts on two bases, in fp32. Packages that are given must be in fp32 too, and
their manifests' names differ: other precisions do not promise that a batch says what a request alone says.

First memory: so many generations, then loads and unloads, then streams that are abandoned half-way, half of them
asynchronous. After a tenth of each, and at its end, garbage is collected and the process is looked at: resident
memory may change by `--percent`, and no type of object, no files, threads or sessions may grow. Resident memory is
what the system tells (psutil's `rss`), with what the C library keeps of freed memory; `trimmed` is without that.

Then stress: threads with random requests of all kinds, which they cancel, time out and abandon, with processors and
listeners that raise, while names get other packages, experts are evicted, and another process clears and prunes the
store. Every answer that finishes must be the one that its package gives alone, and of the others what there is. A
request that takes `--hang` seconds is a hang: the stacks of all threads are written, and the run ends.

Stress has no bound on resident memory: with glibc it grows with the arenas that threads have, which the environment
variable MALLOC_ARENA_MAX=1 holds to one.

The exit status is 1 where any of that does not hold. 0 as a number leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.soak_memory import stay_small
from harness.soak_stress import stress
from harness.soaking import Report, Run


class _Messages(logging.Handler):
    """Counts what the library logs, by level and text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        self.counts[f"{record.levelname}: {record.msg}"] += 1


@contextmanager
def _listening(report: Report) -> Iterator[None]:
    """Catch what is logged, and what is raised where nobody can catch it."""
    messages, lost = _Messages(), Counter[str]()
    logger = logging.getLogger("hivellm_ort")
    logger.addHandler(messages)
    logger.propagate = False
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda told: lost.update([f"{told.err_msg} {told.object!r}: {told.exc_value!r}"])
    threading.excepthook = lambda told: lost.update([f"a thread ended by {told.exc_value!r}"])
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        logger.removeHandler(messages)
        logger.propagate = True
        report.stress["messages"] = dict(messages.counts)
        for text, times in messages.counts.items():
            if not text.startswith("ERROR: the event hook"):  # one raises on purpose
                report.faults.append(f"{times} times logged: {text}")
        report.faults += [f"{times} times: {text}" for text, times in lost.items()]


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, nargs="*", metavar="PACKAGE")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--generations", type=int, default=5000)
    parser.add_argument("--loads", type=int, default=500)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--percent", type=float, default=2)
    parser.add_argument("--hang", type=float, default=120)
    parser.add_argument("--no-cleaning", action="store_true", help="no other process clears the store")
    parser.add_argument("--plot", type=Path, help="write resident memory over time, such as memory.svg")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _listening(report):
        packages = options.packages or _made(Path(folder) / "packages")
        run = Run.of(packages, Path(folder) / "store")
        stay_small(report, options, run)
        if options.minutes:
            stress(report, options, run)
    if options.plot:
        from harness.plots import draw_memory

        draw_memory(report.track.as_json(), options.plot)
    _print(report, as_json=options.json)
    # Threads that hang would be waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if report.faults else 0)


def _made(folder: Path) -> list[Path]:
    script = Path(__file__).parent / "harness" / "tiny_packages.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [Path(line) for line in done.stdout.splitlines()]


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        document = {"memory": report.memory, "stress": report.stress, "faults": report.faults}
        print(json.dumps(document | {"track": report.track.as_json()}, indent=2))
        return
    for name, row in {**report.memory, "stress": report.stress}.items():
        print(f"\n{name}")
        for key, value in row.items():
            shown = f"{value / 1e6:.1f} MB" if key.startswith(("rss", "trimmed ")) and value > 1e5 else value
            print(f"  {key:<20} {shown}")
    print()
    for fault in report.faults:
        print(f"FAULT {fault}")
    print("all held" if not report.faults else f"{len(report.faults)} faults")


if __name__ == "__main__":
    main()
