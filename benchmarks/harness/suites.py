"""How each suite makes its rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from harness.fleet import Fleet
from harness.measure import Results, Row, take_turns
from harness.models import EXPERTS, MODELS, experts_of
from harness.plan import MODULES, Case, System
from harness.workers import WorkerError

__all__ = ["SPEED_SUITES"]

Suite = Callable[[Case, Fleet, Results], None]
Metric = Callable[[dict[str, Any]], float]
Entrants = dict[str, Callable[[int], dict[str, Any]]]


def _prompt(case: Case, number: int, tokens: int, part: int = 0) -> list[int]:
    """Random ids, the same for all systems and others in every round, so that nothing kept can help."""
    draw = random.Random(f"{case.suite} {case.model} {number} {tokens} {part}")
    return [1, *(draw.randrange(100, MODELS[case.model].vocab - 100) for _ in range(tokens - 1))]


def _take_turns(
    case: Case, results: Results, entrants: Entrants, unit: str, metric: Metric, *more: str
) -> None:
    """Rows of all entrants, whose names are a system's or `system | case`; `more` members of answers are kept."""
    samples, failures = take_turns(entrants, case.rounds, warm_up=case.warm_up)
    for name, answers in samples.items():
        system, _, variant = name.partition(" | ")
        results.rows.append(
            Row(
                case.suite,
                case.model,
                variant or case.name,
                system,
                unit,
                [metric(answer) for answer in answers],
                [answer["disturbed"] for answer in answers],
                {key: [answer[key] for answer in answers] for key in more if key in answers[0]},
            )
        )
    for name, reason in failures.items():
        system, _, variant = name.partition(" | ")
        results.fail(case.suite, case.model, variant or case.name, system, reason)


def prefill(case: Case, fleet: Fleet, results: Results) -> None:
    """Prompt tokens per second, until the first token is chosen."""
    size = case.settings["tokens"]

    def entrant(system: System, number: int) -> dict[str, Any]:
        request = {"op": "generate", "prompt_ids": _prompt(case, number, size), "new_tokens": 1}
        return fleet.worker(system, case.model).ask(request)

    entrants: Entrants = {system.name: partial(entrant, system) for system in case.systems}
    _take_turns(case, results, entrants, "tokens/s", lambda answer: size / answer["prefill_seconds"])


def decode(case: Case, fleet: Fleet, results: Results) -> None:
    """New tokens per second after a prompt; the first belongs to the prompt."""
    context, new = case.settings["context"], case.settings["new_tokens"]

    def entrant(system: System, number: int) -> dict[str, Any]:
        request = {"op": "generate", "prompt_ids": _prompt(case, number, context), "new_tokens": new}
        return fleet.worker(system, case.model).ask(request)

    entrants: Entrants = {system.name: partial(entrant, system) for system in case.systems}
    _take_turns(case, results, entrants, "tokens/s", lambda answer: (new - 1) / answer["decode_seconds"])


def adapters(case: Case, fleet: Fleet, results: Results) -> None:
    """Decoding with adapters of random weights on six modules, beside the base without one."""
    context, new = case.settings["context"], case.settings["new_tokens"]
    variants = [(f"{kind} {rank}", kind, rank) for kind, rank in case.settings["variants"]]

    def entrant(system: System, name: str | None, number: int) -> dict[str, Any]:
        request = {"op": "generate", "prompt_ids": _prompt(case, number, context), "new_tokens": new}
        return fleet.worker(system, case.model).ask({**request, "adapter": name})

    entrants: Entrants = {}
    for system in case.systems:
        try:
            for name, kind, rank in variants:
                request = {"op": "add_adapter", "name": name.replace(" ", "_"), "kind": kind, "rank": rank}
                fleet.worker(system, case.model).ask({**request, "modules": MODULES})
        except WorkerError as error:
            results.fail(case.suite, case.model, case.name, system.name, str(error))
            continue
        entrants[f"{system.name} | none"] = partial(entrant, system, None)
        for name, _, _ in variants:
            entrants[f"{system.name} | {name}"] = partial(entrant, system, name.replace(" ", "_"))
    _take_turns(case, results, entrants, "tokens/s", lambda answer: (new - 1) / answer["decode_seconds"])


def swap(case: Case, fleet: Fleet, results: Results) -> None:
    """Milliseconds to change to another of the three experts: every change is a value."""
    for system in case.systems:
        try:
            worker = fleet.worker(system, case.model, EXPERTS)
            answer = worker.ask({"op": "swap", "adapters": EXPERTS, "count": case.settings["count"]})
        except WorkerError as error:
            results.fail(case.suite, case.model, case.name, system.name, str(error))
            continue
        values = [1e3 * seconds for seconds in answer["seconds"]]
        extra = {"disturbed": answer["disturbed"]}
        results.rows.append(Row(case.suite, case.model, case.name, system.name, "ms", values, [], extra))


def batch(case: Case, fleet: Fleet, results: Results) -> None:
    """Several requests at once and one after another; ours with the three experts mixed, others the base."""
    _in_two_ways(case, fleet, results, "batch", "together", ("apart", "at once"))


def server(case: Case, fleet: Fleet, results: Results) -> None:
    """Clients at once: of the manager in their own process, and of the server over HTTP from another process."""
    _in_two_ways(case, fleet, results, "clients", "http", ("manager", "HTTP"))


def _in_two_ways(
    case: Case, fleet: Fleet, results: Results, op: str, field: str, labels: tuple[str, str]
) -> None:
    """Measure several requests with a field of the operation false and true.

    Args:
        case: The case.
        fleet: The workers.
        results: Gets the rows.
        op: The operation of the worker.
        field: The field.
        labels: The names of both ways, for the rows.
    """
    rows, context, new = (case.settings[key] for key in ("rows", "context", "new_tokens"))

    def entrant(system: System, value: bool, number: int) -> dict[str, Any]:
        experts = experts_of(case.model) if system.peer == "ours" else ()
        request = {
            "op": op,
            "prompts": [_prompt(case, number, context, row + 100 * value) for row in range(rows)],
            "adapters": [experts[row % len(experts)] if experts else None for row in range(rows)],
            "new_tokens": new,
            field: value,
        }
        return fleet.worker(system, case.model, experts).ask(request)

    entrants: Entrants = {
        f"{system.name} | {case.name} {label}": partial(entrant, system, value)
        for system in case.systems
        for value, label in zip((False, True), labels, strict=True)
    }
    _take_turns(case, results, entrants, "tokens/s", lambda answer: rows * new / answer["seconds"])


def load(case: Case, fleet: Fleet, results: Results) -> None:
    """Seconds to load a model in a new process and to answer the first token of 16; files are in the page cache."""

    def entrant(system: System, number: int) -> dict[str, Any]:
        experts = experts_of(case.model)[:1] if system.peer == "ours" else ()
        worker = fleet.fresh(system, case.model, experts)
        try:
            request = {"op": "generate", "prompt_ids": _prompt(case, number, 16), "new_tokens": 1}
            answer = worker.ask({**request, "adapter": experts[0] if experts else None})
        finally:
            worker.close()
        return {**worker.ready, **answer}

    entrants: Entrants = {system.name: partial(entrant, system) for system in case.systems}

    def metric(answer: dict[str, Any]) -> float:
        return float(answer["load_seconds"] + answer["prefill_seconds"])

    _take_turns(case, results, entrants, "s", metric, "import_seconds", "load_seconds", "prefill_seconds")


def memory(case: Case, fleet: Fleet, results: Results) -> None:
    """Resident megabytes of a new process: the base after 512 tokens, or experts after six answers in all."""
    from harness.workload import requests

    count = case.settings["experts"]
    source = fleet.source(case.model) if count else None

    def entrant(system: System, number: int) -> dict[str, Any]:
        names = EXPERTS[:count]
        worker = fleet.fresh(system, case.model, names)
        try:
            if source is None:
                request = {"op": "generate", "prompt_ids": _prompt(case, number, 512), "new_tokens": 32}
                answer = worker.ask(request)
            else:
                asked = (request for request in requests(source) if request["expert"] in names)
                for _, request in zip(range(6), asked, strict=False):
                    request |= {"enforce": False, "length": 32, "max_tokens": 32}
                    answer = worker.ask({"op": "answer", "request": request})
            return {**answer, "bytes": worker.memory()}
        finally:
            worker.close()

    entrants: Entrants = {system.name: partial(entrant, system) for system in case.systems}
    _take_turns(case, results, entrants, "MB", lambda answer: answer["bytes"] / 1e6)


SPEED_SUITES: dict[str, Suite] = {
    "prefill": prefill,
    "decode": decode,
    "adapters": adapters,
    "swap": swap,
    "batch": batch,
    "server": server,
    "load": load,
    "memory": memory,
}
