"""Whether a server that runs for long under load stays right, alive and small.

    python benchmarks/server_soak.py [NAME=PACKAGE …] [--base FOLDER] [--minutes 5] [--clients 64] [--threads 2]
        [--seed 0] [--percent 5] [--json]

Without packages it takes three tiny experts in fp32 from the tests. Packages that are given must be in fp32 too:
other precisions do not promise that a batch says what a request alone says. The last two names are replaced with
each other's packages all the time.

`hivellm-ort serve` runs in a process of its own. Clients ask it for whole answers and streams, read slowly, go away
half-way, and send bad bodies. Every answer must equal what a package of that name says to the request alone.

After a fifth of the time and at the end, when nobody asks, the server is looked at: its rows are free, and its
resident memory grew by `--percent` at most; it has no more file descriptors than before, and no more threads than
the pool of asyncio adds when it is needed.

It prints the time to the first text of a stream, as a client has it, and tokens per second. The exit status is 1
where something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from harness.clients import PROMPTS
from harness.server_clients import KINDS, TOKENS, Answer, ServerClient

from hivellm_ort import ExpertManager

_GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
_EXPERTS = ("sql", "json", "dora")
_POOL = min(32, (os.cpu_count() or 1) + 4)  # threads for calls that block, which start when they are needed
_NAMES = ("active_requests", "queued_requests", "http_requests_in_progress")

Expected = dict[tuple[str, str, str], set[Answer]]


def alone(packages: dict[str, Path], base: Path | None, threads: int) -> Expected:
    """The answers of each expert to each request, one after another; the last two names have each other's too."""
    *_, one, other = packages
    found: Expected = {}
    with ExpertManager(threads=threads, trust="off") as manager:
        manager.load_experts(packages, base=base)
        for name in packages:
            for prompt in PROMPTS:
                for kind, options in KINDS.items():
                    messages = [{"role": "user", "content": prompt}]
                    result = manager.generate(name, messages=messages, max_tokens=TOKENS, **options)
                    reason = "length" if result.finish_reason == "length" else "stop"
                    for asked in {one, other} if name in (one, other) else {name}:
                        found.setdefault((asked, prompt, kind), set()).add((result.text, reason))
    return found


@contextmanager
def serving(packages: dict[str, Path], base: Path | None, threads: int) -> Iterator[tuple[int, str]]:
    """The server's process and its address."""
    command = [sys.executable, "-m", "hivellm_ort", "serve", "--port", "0", "--trust", "off"]
    command += [f"--expert={name}={path}" for name, path in packages.items()]
    command += ["--threads", str(threads), "--allow-loading", str(next(iter(packages.values())).parent)]
    command += ["--base", str(base)] if base is not None else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r" at (http://\S+)$", line):
                    yield process.pid, found[1]
                    break
                print(line, end="", file=sys.stderr)
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()
            print(process.communicate()[1], end="", file=sys.stderr)


async def at_rest(http: httpx.AsyncClient, process: psutil.Process) -> dict[str, Any]:
    """What the server has when nobody asks."""
    end = time.monotonic() + 30
    while True:
        found = dict(
            re.findall(r"^hivellm_ort_(\w+) ([\d.]+)$", (await http.get("/metrics")).text, re.MULTILINE)
        )
        left = {name: float(found[name]) for name in _NAMES if name in found}
        left["http_requests_in_progress"] -= 1  # this one
        if not any(left.values()) or time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    await http.aclose()  # its connections are no leak
    end = time.monotonic() + 10
    while time.monotonic() < end and len(process.net_connections("tcp")) > 1:
        await asyncio.sleep(0.1)
    memory = process.memory_info().rss
    return {"memory": memory, "files": process.num_fds(), "threads": process.num_threads(), "left": left}


async def replace(http: httpx.AsyncClient, packages: dict[str, Path], end: float, wrong: list[str]) -> int:
    """Let the last two names take each other's packages, again and again; how often."""
    *_, one, other = packages
    times = 0
    while time.monotonic() < end:
        await asyncio.sleep(1)
        for name in (one, other):
            path = packages[other if (times + (name == other)) % 2 else one].name
            body = {"lora_name": name, "lora_path": path, "load_inplace": True}
            response = await http.post("/v1/load_lora_adapter", json=body)
            if response.status_code != 200:
                wrong.append(f"replacing {name}: {response.text}")
        times += 1
    return times


async def load(
    address: str,
    process: psutil.Process,
    packages: dict[str, Path],
    expected: Expected,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Two parts, of a fifth of the time and of the rest, with a look at the server after each."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    first: list[float] = []
    looks, tokens, seconds = [], 0, 0.0
    for part, share in enumerate((0.2, 0.8)):
        limits = httpx.Limits(max_connections=None)
        http = httpx.AsyncClient(base_url=address, timeout=120, limits=limits)
        seeds = (1000 * options.seed + 100 * part + number for number in range(options.clients))
        clients = [ServerClient(http, expected, seed) for seed in seeds]
        begin = time.monotonic()
        end = begin + 60 * options.minutes * share
        *_, times = await asyncio.gather(
            *(client.run(end) for client in clients), replace(http, packages, end, wrong)
        )
        seconds += time.monotonic() - begin
        counts["replaced"] += times
        for client in clients:
            counts.update(client.counts)
            wrong += client.wrong
            first += client.first
            tokens += client.tokens
        looks.append(await at_rest(http, process))
    cuts = statistics.quantiles(first, n=20)
    return {
        "seconds": round(seconds, 1),
        "counts": dict(counts),
        "time to first text, s": {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3)},
        "tokens per second": round(tokens / seconds, 1),
        "after a fifth": looks[0],
        "at the end": looks[1],
        "wrong": wrong[:20],
        "number of wrong": len(wrong),
    }


def faults(report: dict[str, Any], percent: float) -> list[str]:
    """What does not hold."""
    before, after = report["after a fifth"], report["at the end"]
    found = [f"{report['number of wrong']} wrong answers or failures"] if report["number of wrong"] else []
    found += [f"{name}: {value:g} left" for name, value in after["left"].items() if value]
    found += [
        f"{name} grew from {before[name]} to {after[name]}"
        for name, more in (("files", 0), ("threads", _POOL))
        if after[name] > before[name] + more
    ]
    growth = 100 * (after["memory"] / before["memory"] - 1)
    return found + ([f"memory grew by {growth:.1f} %"] if growth > percent else [])


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="*", metavar="NAME=PACKAGE")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--percent", type=float, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = {name: Path(path) for name, _, path in (text.partition("=") for text in options.packages)}
    base = options.base if given else _GOLDEN / "base"
    given = given or {name: _GOLDEN / f"{name}.expert" for name in _EXPERTS}
    if len(given) < 2:
        parser.error("name at least two packages")
    with tempfile.TemporaryDirectory() as folder:
        packages = {name: Path(folder) / f"{name}.expert" for name in given}  # for --allow-loading
        for name, path in packages.items():
            shutil.copyfile(given[name], path)
        expected = alone(packages, base, options.threads)
        with serving(packages, base, options.threads) as (pid, address):
            report = asyncio.run(load(address, psutil.Process(pid), packages, expected, options))
    report["cores"] = os.cpu_count()
    found = faults(report, options.percent)
    if options.json:
        print(json.dumps({**report, "faults": found}, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:<22} {value}")
        print("\n".join(f"FAULT {fault}" for fault in found) or "all held")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
