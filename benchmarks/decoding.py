"""What several tokens per step, kept prefixes and batches gain, and what Python costs beside the model.

    python benchmarks/decoding.py --packages out/int8 [--rounds 5] [--memory 10000] [--json]

`--packages` holds thin packages of expert-sql, expert-elastic and expert-json, and their bundle in `base/`. Every
figure is a ratio of two ways to do the same work, taken in turns within one run: the median, and the range of the
rounds. `--memory N` asks N short questions in one process and watches its resident memory.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from hivellm_ort import ExpertManager
from hivellm_ort.engine.forward_pass import ForwardPass

EXPERTS = ("sql", "elastic", "json")
TABLES = "\n".join(
    f"CREATE TABLE t{i} (id INT PRIMARY KEY, name TEXT, city TEXT, created DATE, amount DECIMAL);"
    for i in range(9)
)
QUESTIONS = {
    "sql": "Show the name and city of t3 where amount is over {n}, sorted by created",
    "elastic": "Find all documents where order.total is greater than {n} and status is shipped.",
    "json": 'Fix this invalid JSON:\n{{\'id\': {n}, "name": "kettle", "in_stock": true,}}',
}
FIELD = {
    "type": "object",
    "properties": {"type": {"enum": ["keyword", "text", "date", "integer", "float"]}},
    "required": ["type"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "elastic": {  # a mapping
        "type": "object",
        "properties": dict.fromkeys(("title", "created_at", "author", "price"), FIELD),
        "required": ["title", "created_at", "author", "price"],
        "additionalProperties": False,
    },
    "sql": {  # a plan
        "type": "object",
        "properties": {
            "tool": {"enum": ["run_query", "describe_table", "list_tables"]},
            "table": {"type": "string", "maxLength": 24},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            "explain": {"type": "boolean"},
        },
        "required": ["tool", "table", "limit", "explain"],
        "additionalProperties": False,
    },
    "json": {},  # any JSON
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 64}


def broken_json(seed: int) -> str:
    """A question whose answer repeats most of it: an object with one comma too many."""
    draw = random.Random(seed)
    words = ["kettle", "lamp", "chair", "table", "spoon", "plate", "clock", "mirror"]
    items = [
        {
            "id": draw.randrange(10_000),
            "name": draw.choice(words),
            "price": draw.randrange(100),
            "tags": words[:3],
        }
        for _ in range(3)
    ]
    return "Fix this invalid JSON:\n" + json.dumps({"items": items}).replace("}]}", "},]}")


def turns(rounds: int, one: Callable[[int], float], other: Callable[[int], float]) -> dict[str, float]:
    """`one` over `other`, in turns: median, least and most of the rounds; a first round is not counted."""
    ratios = [one(i) / other(i) for i in range(-1, rounds)][1:]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def lookup(manager: ExpertManager, rounds: int) -> dict[str, float]:
    """Decode speed with prompt lookup over without, on copy-heavy prompts."""

    def speed(guess: bool) -> Callable[[int], float]:
        def run(seed: int) -> float:
            result = manager.generate(
                "json", broken_json(seed), temperature=0, max_tokens=128, prompt_lookup=guess
            )
            return result.tokens_per_second

        return run

    return turns(rounds, speed(True), speed(False))


def prefix(manager: ExpertManager, rounds: int) -> dict[str, float]:
    """Time to the first token of a prompt with a known beginning of some 300 tokens: read anew, over kept."""
    prefixes = manager._registry.bases()[0].engine.prefixes

    def first_token(clear: bool) -> Callable[[int], float]:
        def run(number: int) -> float:
            if clear:
                prefixes.clear()
            question = QUESTIONS["sql"].format(n=number + 10)
            return manager.generate(
                "sql", question, schema=TABLES, temperature=0, max_tokens=1
            ).timings.prefill

        return run

    return turns(rounds, first_token(True), first_token(False))


def batch(manager: ExpertManager, rounds: int) -> dict[str, float]:
    """Tokens per second of eight requests of 64 tokens to three experts at once, over one after another."""
    requests = [(name, QUESTIONS[name].format(n=n)) for n in range(100, 103) for name in EXPERTS][:8]
    prefixes = manager._registry.bases()[0].engine.prefixes

    options = {**GREEDY, "min_tokens": GREEDY["max_tokens"]}

    def together(_: int) -> float:
        prefixes.clear()
        results: list[Any] = []
        spent = seconds(lambda: results.extend(manager.generate_batch(requests, **options)))
        return sum(result.completion_tokens for result in results) / spent

    def apart(_: int) -> float:
        prefixes.clear()
        results: list[Any] = []
        spent = seconds(lambda: results.extend(manager.generate(*request, **options) for request in requests))
        return sum(result.completion_tokens for result in results) / spent

    return turns(rounds, together, apart)


@contextmanager
def counted_runs() -> Iterator[list[float]]:
    """Seconds of every forward pass meanwhile."""
    runs: list[float] = []
    original = ForwardPass.run

    def run(self: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = original(self, *arguments)
        runs.append(time.perf_counter() - begin)
        return result

    ForwardPass.run = run  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        ForwardPass.run = original  # type: ignore[method-assign]


def overhead(manager: ExpertManager, rounds: int) -> dict[str, float]:
    """Share of a greedy decode step that is spent outside the forward pass."""
    shares = []
    for number in range(rounds + 1):
        with counted_runs() as runs:
            result = manager.generate("sql", QUESTIONS["sql"].format(n=number), schema=TABLES[:200], **GREEDY)
        shares.append(1 - sum(runs[1:]) / result.timings.decode)
    return {"median": statistics.median(shares[1:]), "least": min(shares[1:]), "most": max(shares[1:])}


def forced(manager: ExpertManager, rounds: int) -> dict[str, float]:
    """Share of the tokens under a JSON schema that took no forward pass of their own, by schema."""
    shares = {}
    for kind, (name, schema) in zip(("mapping", "plan", "any_json"), SCHEMAS.items(), strict=True):
        counts = [0, 0]
        for number in range(rounds):
            question = QUESTIONS[name].format(n=number)
            with counted_runs() as runs:
                result = manager.generate(name, question, json_schema=schema, temperature=0, max_tokens=96)
            counts[0] += result.completion_tokens - len(runs)
            counts[1] += result.completion_tokens
        shares[kind] = counts[0] / counts[1]
    return shares


def memory(manager: ExpertManager, count: int) -> dict[str, float]:
    """Resident megabytes after a tenth of `count` short generations, and how far they went from there, in percent."""
    process = psutil.Process()
    sizes = []
    for number in range(count):
        name = EXPERTS[number % 3]
        manager.generate(name, QUESTIONS[name].format(n=number), temperature=0, max_tokens=2)
        if number >= count // 10 and number % max(count // 100, 1) == 0:
            sizes.append(process.memory_info().rss / 1e6)
    first = sizes[0]
    return {
        "megabytes": first,
        "least_percent": 100 * (min(sizes) / first - 1),
        "most_percent": 100 * (max(sizes) / first - 1),
    }


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    with ExpertManager(threads=options.threads, trust="off") as manager:
        for name in EXPERTS:
            (package,) = options.packages.glob(f"expert-{name}-*.expert")
            manager.load_expert(name, package, base=options.packages / "base")
        for measure in (lookup, prefix, batch, overhead, forced):
            report[measure.__name__] = measure(manager, options.rounds)
            if not options.json:
                print(_line(measure.__name__, report[measure.__name__]), flush=True)
        if options.memory:
            report["memory"] = memory(manager, options.memory)
            if not options.json:
                print(_line("memory", report["memory"]))
    if options.json:
        print(json.dumps(report, indent=2))


def _line(name: str, row: dict[str, float]) -> str:
    return f"{name:<9} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items())


if __name__ == "__main__":
    main()
