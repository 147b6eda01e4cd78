"""How long a package takes to load: unpacked for the first time, and when it is in the store already.

    python benchmarks/loading.py PACKAGE [--rounds 9] [--json]

Every round is a new process that calls `Expert.load`; the first, in an empty store, is the cold one. `open` is
finding the package in the store, or unpacking it. `package` is that and all else that a load does for the package
alone: its manifest, its signature, its adapter, its grammar. `base` is the tokenizer and the chat template, `session`
ONNX Runtime's session; both are made once for all experts of a base. Modules are imported before the clock starts.
Milliseconds, of the warm ones the median and the least; `CPU` is the median of what the process took of processors,
which other processes change less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_ROUND = """
import functools, json, sys, time
import numpy, safetensors, tqdm
import hivellm_ort.serving.base, hivellm_ort.engine.session, hivellm_ort.expert
from hivellm_ort import Expert
from hivellm_ort.engine.environment import import_onnxruntime

import_onnxruntime()
spent = {key: numpy.zeros(2) for key in ("open", "package", "base", "session")}
inner = [numpy.zeros(2)]

def now():
    return 1000 * numpy.array([time.perf_counter(), time.process_time()])

def timed(function, key):
    @functools.wraps(function)
    def call(*arguments, **options):
        begin = now()
        inner.append(numpy.zeros(2))
        try:
            return function(*arguments, **options)
        finally:
            took = now() - begin
            spent[key] += took - inner.pop()  # what is timed for itself does not count twice
            inner[-1] += took
    return call

hivellm_ort.expert.open_with_progress = timed(hivellm_ort.expert.open_with_progress, "open")
hivellm_ort.serving.base.Base.__init__ = timed(hivellm_ort.serving.base.Base.__init__, "base")
hivellm_ort.engine.session.start_session = timed(hivellm_ort.engine.session.start_session, "session")
expert = timed(Expert.load, "package")(sys.argv[1], cache_dir=sys.argv[2])
expert.shared_base.engine.decoder(adapters=expert.adapter is not None)  # if its session has not begun
spent["package"] += spent["open"]
print(json.dumps({key: times.tolist() for key, times in spent.items()}))
"""


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        rounds = [_round(options.package, store) for _ in range(options.rounds + 1)]
    cold, warm = rounds[0], rounds[1:]
    report = {
        name: {
            "cold": round(cold[name][0], 1),
            "warm": round(statistics.median(one[name][0] for one in warm), 1),
            "least": round(min(one[name][0] for one in warm), 1),
            "CPU": round(statistics.median(one[name][1] for one in warm), 1),
        }
        for name in cold
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    columns = list(report["open"])
    print("".join([f"{'ms':<8}", *(f"{column:>9}" for column in columns)]))
    for name, row in report.items():
        print("".join([f"{name:<8}", *(f"{row[column]:>9}" for column in columns)]))


def _round(package: Path, store: str) -> dict[str, list[float]]:
    """Milliseconds of each part: by the clock, and of the processor."""
    command = [sys.executable, "-c", _ROUND, str(package), store]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, list[float]] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
