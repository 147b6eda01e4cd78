"""What we promise, and whether this run shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.measure import Results, Row
from harness.models import MODELS
from harness.plan import PRECISIONS
from harness.stats import Spread, quiet_rounds, ratio, spread

__all__ = ["Check", "Table", "check_targets"]

_EQUAL_BITS = {"int8": "q8_0", "int4": "q4_0"}
_PAIRS = {"fp32": ("fp32",), "int8": ("int8",), "int4": ("int4+head8", "int4")}  # ours, and GenAI's
_LARGEST_KL = 0.02


@dataclass(frozen=True)
class Check:
    """One promise: `held` is None where this run did not measure it."""

    promise: str
    on: str
    measured: str
    target: str
    held: bool | None

    def as_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


class Table:
    """Rows by what they are about."""

    def __init__(self, results: Results):
        self.results = results
        self._rows = {(row.suite, row.model, row.case, row.system): row for row in results.rows}

    def row(self, suite: str, model: str, case: str, system: str) -> Row | None:
        """One row, if it was measured."""
        return self._rows.get((suite, model, case, system))

    def ratio(self, one: Row | None, other: Row | None) -> Spread | None:
        """`one` over `other` by round, in the rounds to keep; None where one was not measured."""
        if one is None or other is None or len(one.values) != len(other.values):
            return None
        rounds = range(len(one.values))
        if one.disturbed and other.disturbed:
            rounds = quiet_rounds([one.disturbed, other.disturbed])
        return ratio([one.values[n] for n in rounds], [other.values[n] for n in rounds])

    def value(self, row: Row) -> Spread:
        """The row's values in the rounds to keep."""
        rounds = quiet_rounds([row.disturbed]) if row.disturbed else range(len(row.values))
        return spread([row.values[n] for n in rounds])


def check_targets(results: Results) -> list[Check]:
    """Every promise of the project that this benchmark can show, in the order of the suites."""
    table = Table(results)
    return [check for part in (_speed, _adapters, _workload, _rest) for check in part(table)]


def _at_least(promise: str, on: str, found: Spread | None, target: float) -> Check:
    held = None if found is None else found.median >= target
    return Check(promise, on, "not measured" if found is None else found.text(), f">= {target}x", held)


def _at_most(promise: str, on: str, found: float | None, target: float, unit: str) -> Check:
    measured = "not measured" if found is None else f"{found:.3g}{unit}"
    return Check(promise, on, measured, f"<= {target:g}{unit}", None if found is None else found <= target)


def _good_precisions(table: Table) -> list[str]:
    """Our precisions whose KL is small enough; fp32 is exact."""
    rows = [row for row in table.results.rows if (row.suite, row.case) == ("quality", "kl")]
    good = [row.system for row in rows if row.system.startswith("ours ") and row.values[0] <= _LARGEST_KL]
    return sorted({*good, "ours fp32"})


def _speed(table: Table) -> Iterator[Check]:
    for model in MODELS.values():

        def versus(suite: str, case: str, one: str, other: str, name: str = model.name) -> Spread | None:
            return table.ratio(table.row(suite, name, case, one), table.row(suite, name, case, other))

        for precision, theirs in _PAIRS.items():
            if (model.name, precision) == ("qwen3", "fp32"):
                continue
            ours, on = f"ours {precision}", f"{model.title}, {precision}"
            for other in theirs:
                pair, what = (ours, f"genai {other}"), on if other == precision else f"{on}, genai {other}"
                decode, prefill = versus("decode", "16", *pair), versus("prefill", "512", *pair)
                yield _at_least("decode without adapter, against ORT GenAI", what, decode, 1.0)
                yield _at_least("prefill of 512 tokens, against ORT GenAI", what, prefill, 1.25)
            if precision in _EQUAL_BITS:
                other = f"llamacpp {_EQUAL_BITS[precision]}"
                found = versus("decode", "16", ours, other)
                yield _at_least("decode without adapter, against llama.cpp", f"{on}, {other}", found, 1.3)
        for other, target in (("genai int8", 2.5), ("transformers bf16", 0.9)):
            found = [
                (spread, name)
                for name in _good_precisions(table)
                if (spread := versus("prefill", "512", name, other)) is not None
            ]
            best = max(found, key=lambda pair: pair[0].median, default=(None, "any precision"))
            promise = f"prefill of 512 tokens with a KL of at most {_LARGEST_KL}, against {other}"
            yield _at_least(promise, f"{model.title}, {best[1]}", best[0], target)
        for precision in PRECISIONS["ours"]:
            long = table.row("decode", model.name, "4096", f"ours {precision}")
            short = table.row("decode", model.name, "16", f"ours {precision}")
            if long is None or short is None:
                continue
            share = table.value(long).median / table.value(short).median
            found_share = Spread(share, share, share, 1)
            yield _at_least(
                "decode at 4,096 tokens, against 16", f"{model.title}, {precision}", found_share, 0.6
            )


def _adapters(table: Table) -> Iterator[Check]:
    for row in table.results.rows:
        if row.suite == "adapters" and row.case == "dora 16" and row.system.startswith("ours"):
            base = table.row("adapters", row.model, "none", row.system)
            on = f"{MODELS[row.model].title}, {row.system}"
            promise = "decode with DoRA of rank 16 on six modules, against merged"
            yield _at_least(promise, on, table.ratio(row, base), 0.88)
    for row in table.results.rows:
        if row.suite == "swap" and row.system.startswith("ours"):
            p95 = float(np.quantile(row.values, 0.95))
            yield _at_most("swap, 95th percentile", row.system, p95, 0.3, " ms")
    for row in table.results.rows:
        if row.suite == "batch" and row.case == "8 at once" and row.system.startswith("ours"):
            apart = table.row("batch", row.model, "8 apart", row.system)
            promise = "eight requests to three experts at once, against one by one"
            yield _at_least(promise, row.system, table.ratio(row, apart), 4.0)


def _workload(table: Table) -> Iterator[Check]:
    rows = {(row.case, row.system): row for row in table.results.rows if row.suite == "workload"}
    for case in ("one by one", "at once"):
        own = {name for at, name in rows if at == case and name.startswith(("ours int8", "ours w8a8"))}
        for system in sorted(own) or ["ours int8"]:
            for other, target in (
                ("transformers fp32", 4.0),
                ("transformers bf16", 4.0),
                ("genai int8", 2.0),
                ("llamacpp q8_0", 1.5),
            ):
                found = table.ratio(rows.get((case, system)), rows.get((case, other)))
                yield _at_least(f"expert workload, {case}, against {other}", system, found, target)
    for (case, system), row in rows.items():
        if system.startswith("ours"):
            flags = [flag for answers in row.extra["valid"] for flag in answers]
            good = sum(bool(flag) for flag in flags)
            promise = f"answers valid under their grammar, {case}"
            yield Check(promise, system, f"{good} of {len(flags)}", "all", good == len(flags))


def _rest(table: Table) -> Iterator[Check]:
    for row in table.results.rows:
        if row.suite == "memory" and row.case == "experts 3" and row.system.startswith("ours"):
            one = table.row("memory", row.model, "experts 1", row.system)
            found = table.ratio(row, one)
            median = None if found is None else found.median
            yield _at_most("memory of three experts, against one", row.system, median, 1.12, "x")
    load = table.row("load", "smollm2", "first token", "ours int8")
    median = None if load is None else table.value(load).median
    yield _at_most("loaded package to first token", "ours int8", median, 1.0, " s")
    size = table.row("install", "smollm2", "size", "ours")
    yield _at_most("from hivellm_ort import Expert", "ours", size and size.extra["import_seconds"], 0.2, " s")
    yield _at_most("installed size of hivellm-ort[cpu]", "ours", size and size.values[0], 170, " MB")
