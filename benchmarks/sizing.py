"""What a replica needs and does: memory of base, experts and rows, tokens per second of one core.

    python benchmarks/sizing.py PACKAGE [--experts 50] [--tokens 128] [--threads 1] [--json]

Resident memory is read from the system after each step; the experts are the one package under many names, each with
arrays of its own. A row holds keys and values of its prompt and its answer. Tokens per second are those of answers
to short prompts, all rows together; those of a core count the time that the processor worked for this process, which
other processes change less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hivellm_ort import ExpertManager

ROWS = (1, 4, 8)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--experts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"threads": options.threads}
    with (
        tempfile.TemporaryDirectory() as folder,
        # Nothing is kept, so that rows alone grow.
        ExpertManager(
            cache_dir=folder, threads=options.threads, trust="off", prefix_cache_bytes=0
        ) as manager,
    ):
        manager.load_expert("warm", options.package, base=options.base)
        manager.unload_expert("warm")  # unpacked now: what that took is not the base's
        empty = _resident()
        begin = time.perf_counter()
        manager.load_expert("0", options.package, base=options.base)
        manager.generate("0", "Hello", max_tokens=4)
        report["first expert and base: s"] = time.perf_counter() - begin
        one, told = _resident(), manager.stats()
        report["process without a base: MiB"] = empty
        report["base: MiB of its files"] = told["bases"][0]["bytes"] / 2**20
        report["base and first expert: MiB resident"] = one - empty
        begin = time.perf_counter()
        for number in range(1, options.experts):
            manager.load_expert(str(number), options.package, base=options.base)
            manager.generate(str(number), "Hello", max_tokens=1)
        more = options.experts - 1
        report["each more expert: s"] = (time.perf_counter() - begin) / more
        report["each more expert: MiB resident"] = (_resident() - one) / more
        report["each expert: MiB of arrays"] = manager.stats()["adapter_bytes"] / options.experts / 2**20
        speeds = {rows: _speed(manager, rows, options.tokens) for rows in ROWS}
        report["tokens/s by rows"] = {rows: by_clock for rows, (by_clock, _) in speeds.items()}
        report["tokens per s of a core by rows"] = {rows: by_core for rows, (_, by_core) in speeds.items()}
        report["a row of 1,000 tokens: MiB"] = _row(manager)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        shown = (
            {key: round(one, 1) for key, one in value.items()} if isinstance(value, dict) else round(value, 2)
        )
        print(f"{name:40} {shown}")


def _resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _speed(manager: ExpertManager, rows: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of rows with different experts, all as long: by the clock, and by the processor's time."""
    requests = [(str(row), "Hello") for row in range(rows)]
    options: dict[str, Any] = {
        "max_tokens": tokens,
        "temperature": 1,
        "regex": "[^~]{2000,}",
        "batch_size": rows,
    }
    manager.generate_batch(requests, **options)
    begin, begin_core = time.perf_counter(), time.process_time()
    results = manager.generate_batch(requests, **options)
    count = sum(one.completion_tokens for one in results)
    return count / (time.perf_counter() - begin), count / (time.process_time() - begin_core)


def _row(manager: ExpertManager) -> float:
    """MiB of keys and values, while one row with a long prompt runs."""
    prompt = "word " * 600
    stream = manager.generate_stream("0", prompt, max_tokens=64, regex="[^~]{2000,}")
    for _ in stream:
        told = manager.stats()["bases"][0]["key_value_bytes"]
        stream.cancel()
        break
    count = len(manager.prompt_ids("0", prompt)) + 1
    return float(told / count * 1000 / 2**20)


if __name__ == "__main__":
    main()
