"""From results to Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.measure import Results, Row
from harness.models import MODELS, Model
from harness.plan import SUITES, parse_system
from harness.stats import DISTURBED
from harness.targets import Table, check_targets

__all__ = ["limit", "markdown"]

# Bytes per weight, scales included, of the layers and of the LM head; and per key or value.
_BYTES = {
    "fp32": (4, 4, 4),
    "bf16": (2, 2, 2),
    "int8": (1.125, 1.125, 4),
    "int4": (0.625, 0.625, 4),
    "int4+head8": (0.625, 1.125, 4),
    "ours int8": (1.0625, 1.0625, 4),
    "ours int8+kv8": (1.0625, 1.0625, 1),
    "ours w8a8": (1.0, 1.0625, 4),
    "ours w8a8+kv8": (1.0, 1.0625, 1),
    "ours int4": (0.625, 1.0625, 4),
    "q8_0": (1.0625, 1.0625, 2),
    "q4_0": (0.5625, 1.0625, 2),
    "q4_1": (0.625, 1.0625, 2),
    "openvino int8": (1.0, 1.0, 1),
    "openvino int4": (0.5625, 1.0, 1),
}
_TITLES = {
    "prefill": "Prefill: prompt tokens per second",
    "decode": "Decode: tokens per second after a context",
    "adapters": "Adapters of random weights on six modules: tokens per second after 16",
    "swap": "Swap to another of three experts: milliseconds",
    "batch": "Batches of short prompts: new tokens per second, prompts included",
    "server": "Clients at once, each with a stream of its own: tokens per second, prompts included",
    "workload": "Expert workload: requests per minute",
    "load": "Load and first token of 16: seconds in a new process, files in the page cache",
    "memory": "Resident memory: MB",
    "install": "Installed size: MB",
    "quality": "Quality",
}
_NOTES = {
    "prefill": "Random token ids, the same for all, others in every round. onnx-genai takes texts: other tokens, as "
    "many.",
    "decode": "Behind each speed stands the physical limit: memory bandwidth over the bytes that a token must read. "
    "A model that fits the last-level cache may pass it.",
    "batch": "Ours: the three experts mixed in one batch. Others: the base; none of them mixes DoRA adapters.",
    "server": "Ours: threads that call the manager, and clients of our server in a process of their own; the three "
    "experts mixed. No server of a peer is set up here.",
    "workload": "About 300 tokens of shared schema, a question, 60 tokens of answer, three experts in turns. Ours "
    "and transformers swap adapters; genai, llamacpp and openvino hold one merged model per expert; optimum answers "
    "with the base, which is the same work. Ours, genai, llamacpp and openvino enforce the grammars; transformers "
    "and optimum have none, and generate as many tokens as our answer has. What each keeps of earlier prompts by "
    "itself stays on: ours and openvino the shared prefixes, llamacpp the prompt before. At once: all requests of a "
    "round come together. Ours answers those of all experts in one batch; a peer with a model per expert answers one "
    "after the other, and a batch per model is not tried.",
    "quality": "KL against transformers fp32 on the READMEs of `models/`, in nats per token; exact answers to "
    "held-out prompts, and how many equal the reference's token by token.",
    "install": "What running needs with all it requires, without what only conversion needs.",
}
_ABSENT = "-"


def markdown(document: dict[str, Any]) -> str:
    """The whole report of one run."""
    results = Results.from_json(document)
    parts = [_machine(document), _targets(results)]
    for suite in SUITES:
        for model in MODELS.values():
            rows = [row for row in results.rows if (row.suite, row.model) == (suite, model.name)]
            if rows:
                parts.append(_suite(suite, model, rows, Table(results), document["machine"]))
    parts.append(_failures(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def limit(model: Model, system: str, context: int, bandwidth: float) -> float:
    """Tokens per second that memory allows: bandwidth in bytes per second over the bytes that one token reads."""
    layers, head, cache = _BYTES.get(system) or _BYTES[parse_system(system).precision]
    size = layers * model.layer_weights + head * model.head_weights + cache * model.cache_values(context)
    return bandwidth / size


def _machine(document: dict[str, Any]) -> str:
    facts = document["machine"]
    versions = "; ".join(
        f"{peer}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for peer, found in sorted(document["versions"].items())
    )
    return "\n".join(
        [
            "# Benchmark",
            "",
            f"`{document['command']}`, {document['date']}, {document['seconds'] / 60:.0f} minutes.",
            "",
            f"- {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads for everybody; "
            f"{', '.join(facts['flags']) or 'flags unknown'}",
            f"- memory {facts['memory_gb']} GB, read at {facts['bandwidth_gb_s']} GB/s by {facts['threads']} "
            "threads",
            f"- {facts['system']}, Python {facts['python']}",
            f"- {versions}",
            "- systems take turns in every round and sleep otherwise; cells are medians with the least and the most "
            "of the rounds, ratios are taken round by round",
            f"- {_disturbed(Results.from_json(document).rows)}",
        ]
    )


def _disturbed(rows: Sequence[Row]) -> str:
    shares = [share for row in rows for share in row.disturbed]
    bad = sum(share > DISTURBED for share in shares)
    return (
        f"other processes took more than {DISTURBED:.2f} of a core during {bad} of {len(shares)} samples; rounds "
        "with such a sample are left out where three others remain"
    )


def _targets(results: Results) -> str:
    marks = {True: "held", False: "**missed**", None: _ABSENT}
    return "## Targets\n\n" + _table(
        ["promise", "on", "measured", "target", ""],
        ([c.promise, c.on, c.measured, c.target, marks[c.held]] for c in check_targets(results)),
    )


def _suite(suite: str, model: Model, rows: list[Row], table: Table, machine: dict[str, Any]) -> str:
    cases = list(dict.fromkeys(row.case for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    found = {(row.system, row.case): row for row in rows}

    def cell(system: str, case: str) -> str:
        row = found.get((system, case))
        if row is None:
            return _ABSENT
        text = _value(row, table)
        if suite == "decode":
            text += f" / {limit(model, system, int(case), 1e9 * machine['bandwidth_gb_s']):.0f}"
        return text

    lines = [f"## {_TITLES[suite]}, {model.title}", ""]
    if suite in _NOTES:
        lines += [_NOTES[suite], ""]
    lines.append(_table(["", *cases], ([system, *(cell(system, c) for c in cases)] for system in systems)))
    versus = list(_ratios(suite, cases, systems, found, table))
    if versus:
        lines += ["", _table(["ratio", *cases], versus)]
    return "\n".join(lines)


def _value(row: Row, table: Table) -> str:
    """The cell of one row."""
    if row.suite == "swap":
        return f"{np.median(row.values):.3f}, p95 {np.quantile(row.values, 0.95):.3f}"
    if row.suite == "quality":
        if row.unit == "answers":
            equal = row.extra.get("equal_tokens")
            tail = "" if equal is None else f", {equal} equal tokens"
            return f"{row.values[0]:.0f} of {row.extra['prompts']}{tail}"
        return f"{row.values[0]:.4f}, same first token {100 * row.extra['same_first_token']:.1f} %"
    if row.suite == "install":
        return f"{row.values[0]:.0f} MB in {row.extra['packages']} packages"
    text = table.value(row).text({"s": 2, "MB": 0}.get(row.unit, 1))
    if row.suite == "workload":
        flags = [flag for answers in row.extra["valid"] for flag in answers]
        valid = "no grammar" if None in flags else f"{sum(flags)} of {len(flags)} valid"
        text += f", {np.mean(row.extra['tokens']):.0f} tokens each, {valid}"
    return text


def _ratios(
    suite: str, cases: list[str], systems: list[str], found: dict[tuple[str, str], Row], table: Table
) -> Iterator[list[str]]:
    """Lines of ratios: ours over every peer; with an adapter over without; at once over apart."""

    def line(title: str, pairs: Iterable[tuple[Row | None, Row | None]]) -> Iterator[list[str]]:
        spreads = [table.ratio(*pair) for pair in pairs]
        if any(spreads):
            yield [title, *(_ABSENT if one is None else one.text() for one in spreads)]

    if suite in ("prefill", "decode", "workload"):
        for ours in (system for system in systems if system.startswith("ours ")):
            for other in (system for system in systems if not system.startswith("ours ")):
                yield from line(
                    f"{ours} : {other}", ((found.get((ours, c)), found.get((other, c))) for c in cases)
                )
    elif suite == "adapters":
        for system in systems:
            yield from line(
                f"{system} : without", ((found.get((system, c)), found.get((system, "none"))) for c in cases)
            )
    elif suite == "batch":
        for system in systems:
            pairs = ((found.get((system, c)), found.get((system, f"{c.split()[0]} apart"))) for c in cases)
            yield from line(f"{system} : apart", pairs)


def _failures(results: Results) -> str:
    """What did not run: one line per system and reason."""
    grouped: dict[tuple[str, str], set[str]] = {}
    for failure in results.failures:
        place = f"{failure['suite']} {failure['case']}"
        grouped.setdefault((failure["system"], failure["reason"]), set()).add(place)
    if not grouped:
        return ""
    return "## What did not run\n\n" + _table(
        ["system", "where", "why"],
        ([system, ", ".join(sorted(places)), reason] for (system, reason), places in grouped.items()),
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows
    )
