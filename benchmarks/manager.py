"""What a manager costs and gains: clients at once, time to the first token under load, memory, hand-over of tokens.

    python benchmarks/manager.py --packages out/int8 [--rounds 5] [--tokens 64] [--json]

`--packages` holds thin packages of expert-sql, expert-elastic and expert-json, and their bundle in `base/`. Ratios
are taken in turns within one run: the median, and the range of the rounds. Memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hivellm_ort import ExpertManager
from hivellm_ort.serving.loop import Loop

EXPERTS = ("sql", "elastic", "json")
QUESTIONS = {
    "sql": "Show the name and city of t3 where amount is over {n}, sorted by created",
    "elastic": "Find all documents where order.total is greater than {n} and status is shipped.",
    "json": 'Fix this invalid JSON:\n{{\'id\': {n}, "name": "kettle", "in_stock": true,}}',
}
CLIENTS = 8


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def load(packages: Path, names: tuple[str, ...], **options: Any) -> ExpertManager:
    """A manager with some of the experts."""
    manager = ExpertManager(trust="off", **options)
    for name in names:
        (package,) = packages.glob(f"expert-{name}-*.expert")
        manager.load_expert(name, package, base=packages / "base")
    return manager


def client(
    manager: ExpertManager, number: int, requests: int, options: dict[str, Any], waits: list[float]
) -> None:
    """Ask one question after another, of the experts in turns, and note the time to each first token."""
    for turn in range(requests):
        name = EXPERTS[(number + turn) % 3]
        question = QUESTIONS[name].format(n=1000 * number + turn)
        timings = manager.generate(name, question, **options).timings
        waits.append(timings.queue + timings.prefill)


def clients(
    manager: ExpertManager, count: int, requests: int, options: dict[str, Any], waits: list[float]
) -> float:
    """Tokens per second of so many clients at once, with so many requests in all; prompts are read anew."""
    for base in manager._registry.bases():
        base.engine.prefixes.clear()
    threads = [
        threading.Thread(target=client, args=(manager, number, requests // count, options, waits))
        for number in range(count)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests * options["max_tokens"] / (time.perf_counter() - begin)


def load_test(manager: ExpertManager, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Eight clients on three experts against one client with the same requests, in turns."""
    options = {"temperature": 0, "max_tokens": tokens, "min_tokens": tokens}
    alone: list[float] = []
    loaded: list[float] = []
    ratios, one, many = [], [], []
    for number in range(-1, rounds):
        if number == 0:
            alone, loaded = [], []
        few = clients(manager, 1, 2 * CLIENTS, options, alone)
        all_at_once = clients(manager, CLIENTS, 2 * CLIENTS, options, loaded)
        if number >= 0:
            ratios.append(all_at_once / few)
            one.append(few)
            many.append(all_at_once)
    return {
        "throughput ratio": spread(ratios),
        "one client, tokens/s": spread(one),
        "eight clients, tokens/s": spread(many),
        "first token, one client, s": percentiles(alone),
        "first token, eight clients, s": percentiles(loaded),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p95."""
    cuts = statistics.quantiles(values, n=20)
    return {"p50": cuts[9], "p95": cuts[18]}


def hand_over(manager: ExpertManager, rounds: int, tokens: int) -> dict[str, float]:
    """Microseconds per token that a stream takes beyond the decode loop alone, on the same request."""
    expert = manager._registry.get("sql").expert
    assert expert is not None
    question = QUESTIONS["sql"].format(n=7)
    options: Any = {"temperature": 0, "max_tokens": tokens, "min_tokens": tokens, "prompt_lookup": False}
    loop = Loop(expert.shared_base.engine.decoder(adapters=True))

    def stream(_: int) -> float:
        result = manager.generate_stream("sql", question, **options)
        for _piece in result:
            pass
        return result.result.timings.decode

    def engine(_: int) -> float:
        for _ in loop.begin(expert.builder.build(question, options)):
            pass
        begin = time.perf_counter()
        while loop.active:
            for _ in loop.step():
                pass
        return time.perf_counter() - begin

    return spread(differences(rounds, stream, engine, tokens - 1))


def differences(
    rounds: int, one: Callable[[int], float], other: Callable[[int], float], tokens: int
) -> list[float]:
    """Microseconds per token between two ways, in turns; a first round is not counted."""
    return [1e6 * (one(number) - other(number)) / tokens for number in range(-1, rounds)][1:]


def memory(packages: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Resident memory of three experts that were asked over that of one, with and without kept prefixes."""
    report: dict[str, dict[str, float]] = {}
    for title, prefix_cache_bytes in (("no prefixes", 0), ("prefixes", None)):
        ratios, sizes = [], []
        for _ in range(rounds):
            one, three = (_resident(packages, count, prefix_cache_bytes) for count in (1, 3))
            ratios.append(three / one)
            sizes.append(one / 1e6)
        report[f"memory of three over one, {title}"] = spread(ratios)
        report[f"memory of one in MB, {title}"] = spread(sizes)
    return report


def _resident(packages: Path, experts: int, prefix_cache_bytes: int | None) -> int:
    command = [sys.executable, __file__, "--packages", str(packages), "--resident", str(experts)]
    if prefix_cache_bytes is not None:
        command += ["--prefix-cache-bytes", str(prefix_cache_bytes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident(packages: Path, experts: int, prefix_cache_bytes: int | None) -> int:
    """Resident bytes of this process after 24 answers, the same number whatever the number of experts."""
    names = EXPERTS[:experts]
    with load(packages, names, prefix_cache_bytes=prefix_cache_bytes) as manager:
        for number in range(24):
            name = names[number % experts]
            manager.generate(name, QUESTIONS[name].format(n=number), temperature=0, max_tokens=16)
        return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--prefix-cache-bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(resident(options.packages, options.resident, options.prefix_cache_bytes))
        return
    with load(options.packages, EXPERTS, threads=options.threads) as manager:
        report = load_test(manager, options.rounds, options.tokens)
        report["hand-over, microseconds per token"] = hand_over(manager, options.rounds, options.tokens)
    report |= memory(options.packages, options.rounds)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for title, row in report.items():
            print(f"{title:<42} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
