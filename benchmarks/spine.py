"""Decode speed, adapter overhead, swap time and memory, beside ONNX Runtime GenAI on the same weights.

    python benchmarks/spine.py --packages OUT [--genai FOLDER --genai-python PYTHON] [--threads 2] [--json FILE]

`OUT` is what `hivellm-ort export --thin` wrote. `FOLDER` is a model that `benchmarks/peers/genai_setup.py` built in
the same precision, `PYTHON` the interpreter of its environment. The systems take turns in one run, so that their
ratios hold on a noisy machine; a sample counts only if no other process took the cores meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hivellm_ort import ExpertManager
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.session import Engine

PROMPT = [1, 9690, 198, 52, 409, 374, 42, 1681, 36301, 198, 26687, 42, 198, 38965, 37206, 29534]
NEW_TOKENS = 64
ROUNDS = 15
_BUSY = 0.9  # of the cores we asked for: less means that somebody else had them


def decode_ms(engine: Engine, adapter: BoundAdapter | None, threads: int) -> tuple[float, bool]:
    """Median milliseconds of a greedy decode step, and whether the cores were ours."""
    row = engine.decoder(adapters=adapter is not None)
    row.start(0, adapter, len(PROMPT) + NEW_TOKENS)
    token, steps = int(row.forward(PROMPT).argmax()), []
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(NEW_TOKENS - 1):
        step = time.perf_counter()
        token = int(row.forward([token]).argmax())
        steps.append(time.perf_counter() - step)
    quiet = time.process_time() - cpu > _BUSY * threads * (time.perf_counter() - begin)
    return 1000 * statistics.median(steps), quiet


class GenAI:
    """The peer, in its own environment and process, warm and waiting for requests."""

    def __init__(self, python: Path, model: Path, threads: int):
        script = Path(__file__).parent / "peers" / "genai_decode.py"
        command = [str(python), str(script), "--model", str(model), "--threads", str(threads), "--serve"]
        self._threads = threads
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def decode_ms(self) -> tuple[float, bool]:
        """As the function of the same name."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"prompt_ids": PROMPT, "new_tokens": NEW_TOKENS}) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        elapsed = reply["prefill_s"] + sum(reply["decode_s"])
        quiet = reply["cpu_s"] > _BUSY * self._threads * elapsed
        return 1000 * statistics.median(reply["decode_s"]), quiet

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def take_turns(systems: dict[str, Callable[[], tuple[float, bool]]]) -> dict[str, dict[str, Any]]:
    """Run every system once a round; keep the rounds in which all of them had the cores, if there are three."""
    for system in systems.values():
        system()
    rounds = [{name: system() for name, system in systems.items()} for _ in range(ROUNDS)]
    quiet = [r for r in rounds if all(sample[1] for sample in r.values())]
    kept = quiet if len(quiet) >= 3 else rounds
    first = next(iter(systems))
    return {
        name: {
            "ms": statistics.median(r[name][0] for r in kept),
            "tokens_per_second": 1000 / statistics.median(r[name][0] for r in kept),
            "ratio": [r[first][0] / r[name][0] for r in kept],
            "quiet_rounds": len(quiet),
        }
        for name in systems
    }


def swap_ms(manager: ExpertManager, names: list[str], count: int = 1000) -> dict[str, float]:
    """Milliseconds to bind another adapter, over `count` swaps."""
    slots = [manager._residents.get(name) for name in names]
    engine = manager._residents.bases()[0].engine
    row = engine.decoder(adapters=True)
    times = []
    for i in range(1, count + 1):
        row.start(0, slots[i % len(slots)].expert.adapter, 256)
        times.append(1000 * row.swap_seconds)
    return {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)), "max": max(times)}


def _resident(packages: list[Path], base: Path, queue: Any) -> None:
    with ExpertManager() as manager:
        for package in packages:
            manager.load_expert(package.name, package, base=base)
        for package in packages:
            manager.generate(package.name, "List all users", max_tokens=16)
        queue.put(psutil.Process(os.getpid()).memory_info().rss)


def resident_bytes(packages: list[Path], base: Path) -> int:
    """Resident memory of a fresh process that loaded `packages` and generated with each."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_resident, args=(packages, base, queue))
    process.start()
    size = queue.get(timeout=300)
    process.join()
    return int(size)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--genai-python", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    base, packages = options.packages / "base", sorted(options.packages.glob("*.expert"))
    peer = GenAI(options.genai_python, options.genai, options.threads) if options.genai else None
    report: dict[str, Any] = {"threads": options.threads, "prompt_tokens": len(PROMPT)}
    with ExpertManager(threads=options.threads) as manager:
        for package in packages:
            manager.load_expert(package.name, package, base=base)
        infos = manager.list_loaded_experts()
        engine = manager._residents.bases()[0].engine
        systems: dict[str, Callable[[], tuple[float, bool]]] = {}
        if peer:
            systems[f"ORT GenAI {options.genai.name}, no adapter"] = peer.decode_ms
        systems["ours, no adapter"] = lambda: decode_ms(engine, None, options.threads)
        for info in infos:
            adapter = manager._residents.get(info.name).expert.adapter
            label = f"ours, {info.kind} rank {info.rank} ({info.package})"
            systems[label] = lambda adapter=adapter: decode_ms(engine, adapter, options.threads)
        report["precision"] = engine.config.precision
        report["decode"] = take_turns(systems)
        report["swap_ms"] = swap_ms(manager, [info.name for info in infos])
    if peer:
        peer.close()
    one, all_ = resident_bytes(packages[:1], base), resident_bytes(packages, base)
    report["memory"] = {"one_expert": one, "all_experts": all_, "experts": len(packages), "ratio": all_ / one}

    print(f"decode, {report['precision']}, {options.threads} threads, {len(PROMPT)}-token prompt")
    for name, row in report["decode"].items():
        low, middle, high = np.quantile(row["ratio"], [0.1, 0.5, 0.9])
        print(f"  {name:48} {row['tokens_per_second']:6.1f} tok/s   {middle:.2f}x ({low:.2f}-{high:.2f})")
    print(f"  rounds with the cores to ourselves: {row['quiet_rounds']} of {ROUNDS}")
    swap = report["swap_ms"]
    print(
        f"swap    median {swap['median']:.2f} ms, p95 {swap['p95']:.2f} ms, max {swap['max']:.2f} ms of 1000"
    )
    print(
        f"memory  one expert {one / 1e6:.0f} MB, {len(packages)} experts {all_ / 1e6:.0f} MB: {all_ / one:.2f}x"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
