"""How long a package takes to load: unpacked for the first time, and when it is in the store already.

    python benchmarks/loading.py PACKAGE [--rounds 9] [--json]

Every round is a new process; the first, in an empty store, is the cold one. `package` is all that a warm load does
for the package: finding it, its manifest, its signature, its adapter, ready to be bound. `base` is the tokenizer and
the chat template, `session` ONNX Runtime's session; both are made once for all experts of a base. Modules are
imported before the clock starts. Milliseconds.
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
import json, sys, time
import numpy, safetensors, tqdm
from pathlib import Path
from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.devices import Device
from hivellm_ort.engine.placement import place
from hivellm_ort.engine.session import Engine
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Trust, check
from hivellm_ort.loading.opening import open_with_progress
from hivellm_ort.loading.parts import find_parts
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.store import Store
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.tokenizer import TextTokenizer

import_onnxruntime()
times = [time.perf_counter()]
store = Store(Path(sys.argv[2]))
package = open_with_progress(Path(sys.argv[1]), store)
times.append(time.perf_counter())
check(package, Trust("off"))
manifest = ExpertManifest.from_file(package.root / "manifest.json")
parts = find_parts(package, manifest, store)
if parts.adapter is not None:
    BoundAdapter(parts.adapter, parts.bundle.config)
times.append(time.perf_counter())
placement = place(Device(), parts.bundle.config)
ChatTemplate.from_folder(parts.bundle.folder, TextTokenizer.from_folder(parts.bundle.folder))
times.append(time.perf_counter())
Engine(parts.bundle.folder, parts.bundle.config, placement=placement).start()
times.append(time.perf_counter())
opened, adapter, made, session = (1000 * (b - a) for a, b in zip(times, times[1:]))
print(json.dumps({"open": opened, "package": opened + adapter, "base": made, "session": session}))
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
        name: {"cold": round(cold[name], 1), "warm": round(statistics.median(one[name] for one in warm), 1)}
        for name in cold
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'ms':<8} {'cold':>8} {'warm':>8}")
    for name, row in report.items():
        print(f"{name:<8} {row['cold']:>8} {row['warm']:>8}")


def _round(package: Path, store: str) -> dict[str, float]:
    command = [sys.executable, "-c", _ROUND, str(package), store]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
