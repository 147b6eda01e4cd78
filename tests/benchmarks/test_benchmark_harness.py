"""Statistics, plan, turns and report of the benchmark; nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import environments
from harness.measure import Results, Row, take_turns
from harness.models import MODELS
from harness.plan import LOOKUP, PRECISIONS, SUITES, System, make_plan, parse_system
from harness.plots import draw
from harness.report import limit, markdown
from harness.stats import Spread, quiet_rounds, ratio, spread
from harness.targets import check_targets
from harness.workers import PEERS, Worker, WorkerError
from run import join

MACHINE = {
    "processor": "a processor",
    "flags": ["avx2"],
    "cores": 2,
    "threads": 2,
    "memory_gb": 8.0,
    "bandwidth_gb_s": 10.0,
    "system": "a system",
    "python": "3.11",
}


def row(suite: str, case: str, system: str, *values: float, **extra: Any) -> Row:
    """A row of the small model, measured on a quiet machine."""
    return Row(suite, "smollm2", case, system, "tokens/s", list(values), [0.0] * len(values), extra)


def document(results: Results) -> dict[str, Any]:
    """What a run writes."""
    head = {"command": "run", "date": "a day", "seconds": 60, "machine": MACHINE, "versions": {}}
    return {**head, **results.as_json()}


def test_a_spread_has_median_least_and_most() -> None:
    """Three values give their median and their range."""
    assert Spread(2.0, 1.0, 4.0, 3) == spread([4.0, 1.0, 2.0])


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round that is slow for both changes nothing."""
    assert Spread(2.0, 2.0, 2.0, 2) == ratio([10.0, 2.0], [5.0, 1.0])


def test_a_ratio_needs_equally_many_rounds() -> None:
    """Rounds that have no counterpart are not dropped in silence."""
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_disturbed_rounds_are_left_out_where_three_remain() -> None:
    """One disturbed system spoils the round for all of them."""
    assert [0, 2, 3] == quiet_rounds([[0.0, 0.0, 0.0, 0.1], [0.0, 0.9, 0.0, 0.0]])


def test_disturbed_rounds_stay_where_too_few_are_quiet() -> None:
    """Two quiet rounds of three are too few to leave the third out."""
    assert [0, 1, 2] == quiet_rounds([[0.0, 0.9, 0.0]])


def test_turns_have_another_order_each_round_and_drop_who_fails() -> None:
    """Nobody always follows the same other; a failure is reported with its reason, and the others go on."""
    orders: dict[int, list[str]] = {}

    def entrant(name: str) -> Any:
        def run(number: int) -> dict[str, Any]:
            orders.setdefault(number, []).append(name)
            if (name, number) == ("b", 3):
                raise WorkerError("out of memory")
            return {"round": number}

        return run

    samples, failures = take_turns({name: entrant(name) for name in "abcd"}, 8, warm_up=True)
    assert {"b": "out of memory"} == failures
    assert {name: [{"round": n} for n in range(8)] for name in "acd"} == samples
    assert ["abcd"] * 5 == ["".join(sorted(orders[number])) for number in range(-1, 4)]
    before = {name: {order[order.index(name) - 1] for order in orders.values()} for name in "acd"}
    assert all(len(others - {name}) > 1 for name, others in before.items())


def test_a_quick_plan_has_few_rounds_of_one_precision_of_each_peer() -> None:
    """Only the small model, and ours always takes part."""
    plan = make_plan(["genai"], SUITES, list(MODELS), quick=True, rounds=None)
    assert {1, 2} == {case.rounds for case in plan}
    assert {"smollm2"} == {case.model for case in plan}
    assert {"ours int8", "genai int8"} == {system.name for case in plan for system in case.systems}


def test_a_full_plan_has_every_suite_and_precision() -> None:
    """Nothing of the table is forgotten."""
    plan = make_plan(list(PRECISIONS), SUITES, list(MODELS), quick=False, rounds=None)
    assert set(SUITES) == {case.suite for case in plan}
    wanted = {System(peer, name) for peer, names in PRECISIONS.items() for name in names}
    guessing = {System("ours", f"w8a8+kv8{LOOKUP}")}
    assert wanted | guessing == {
        system for case in plan if case.model == "smollm2" for system in case.systems
    }
    assert {"one by one"} == {case.name for case in plan if guessing & {*case.systems}}


def test_a_system_is_known_by_its_name() -> None:
    """Names of peers may have hyphens."""
    assert System("onnx-genai", "int8") == parse_system("onnx-genai int8")


def test_the_limit_counts_weights_and_cache() -> None:
    """A token reads every weight but the embedding, and all keys and values before it."""
    model = MODELS["smollm2"]
    values = model.layer_weights + model.head_weights
    assert 134_479_872 == values
    assert limit(model, "ours fp32", 0, 4.0 * values) == pytest.approx(1.0)
    assert limit(model, "ours fp32", 100, 1e9) < limit(model, "ours fp32", 0, 1e9)


def test_targets_say_held_missed_or_not_measured() -> None:
    """The median of the ratios decides."""
    theirs = row("decode", "16", "genai int8", 100.0, 100.0, 100.0)
    results = Results([row("decode", "16", "ours int8", 99.0, 110.0, 120.0), theirs])
    found = {(check.promise, check.on): check for check in check_targets(results)}
    decode = found["decode without adapter, against ORT GenAI", "SmolLM2-135M-Instruct, int8"]
    assert ("1.10 (0.99-1.20)", True) == (decode.measured, decode.held)
    assert found["decode without adapter, against ORT GenAI", "SmolLM2-135M-Instruct, int4"].held is None


def test_a_precision_with_a_large_divergence_does_not_count_for_prefill() -> None:
    """The fastest of ours is taken among those that are close to fp32."""
    results = Results(
        [
            row("prefill", "512", "ours int8", 100.0),
            row("prefill", "512", "ours w8a8", 300.0),
            row("prefill", "512", "genai int8", 100.0),
            row("quality", "kl", "ours int8", 0.005),
            row("quality", "kl", "ours w8a8", 0.5),
        ]
    )
    promise = "prefill of 512 tokens with a KL of at most 0.02, against genai int8"
    (check,) = (c for c in check_targets(results) if c.promise == promise and "SmolLM2" in c.on)
    assert ("SmolLM2-135M-Instruct, ours int8", False) == (check.on, check.held)


def test_the_report_has_speeds_limits_ratios_and_failures() -> None:
    """A failure is a line with its reason; a bar in it does not break the table."""
    results = Results([row("decode", "16", "ours int8", 50.0), row("decode", "16", "genai int8", 40.0)])
    results.fail("decode", "smollm2", "16", "openvino int8", "it crashed | twice")
    text = markdown(document(results))
    assert "| ours int8 | 50.0 (50.0-50.0) / 70 |" in text
    assert "| ours int8 : genai int8 | 1.25 (1.25-1.25) |" in text
    assert "| openvino int8 | decode 16 | it crashed \\| twice |" in text


def test_results_survive_their_json() -> None:
    """What is read back is what was written."""
    results = Results([row("load", "first token", "ours int8", 0.5, import_seconds=[0.1])])
    results.fail("load", "smollm2", "first token", "genai int8", "why")
    assert results == Results.from_json(json.loads(json.dumps(results.as_json())))


def test_joined_runs_keep_the_last_of_what_was_measured_twice() -> None:
    """A failure goes when a later run measured the case."""
    first = Results([row("load", "first token", "ours int8", 1.0)])
    first.fail("load", "smollm2", "first token", "genai int8", "why")
    second = Results(
        [row("load", "first token", "ours int8", 2.0), row("load", "first token", "genai int8", 3.0)]
    )
    joined = Results.from_json(join([document(first), document(second)]))
    assert [[2.0], [3.0]] == [found.values for found in joined.rows]
    assert [] == joined.failures


def test_a_worker_answers_what_it_can_and_says_why_it_cannot() -> None:
    """Every request has one line of answer, also those that fail; what a library prints is not among them."""
    code = """
from protocol import Peer, serve

class Small(Peer):
    def __init__(self, spec):
        print("a library says hello")
    def generate(self, prompt_ids, new_tokens, adapter=None):
        return {"tokens": prompt_ids[:new_tokens]}

serve(Small, ("numpy",))
"""
    requests = [
        {"op": "generate", "prompt_ids": [5, 6], "new_tokens": 1},
        {"op": "swap", "adapters": ["a"], "count": 1},
        {"op": "generate"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps({"spawned": 0.0})],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env={**os.environ, "PYTHONPATH": str(PEERS)},
        capture_output=True,
        text=True,
        check=True,
    )
    ready, tokens, swap, failed = map(json.loads, done.stdout.splitlines())
    assert ready["ready"]
    assert [5] == tokens["tokens"]
    assert {"unsupported": "no adapters at run time"} == swap
    assert failed["error"].startswith("TypeError")
    assert "hello" in done.stderr


def test_plots_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    """Two sizes make a plot of a suite; the expert workload is one of its own."""
    pytest.importorskip("matplotlib")
    results = Results(
        [
            row("decode", "16", "ours int8", 50.0, 60.0),
            row("decode", "256", "ours int8", 40.0, 45.0),
            row("prefill", "32", "ours int8", 500.0),
            row("workload", "one by one", "ours int8", 70.0, 80.0, valid=[[True], [True]], tokens=[60, 61]),
        ]
    )
    files = draw(document(results), tmp_path)
    assert ["decode-smollm2.svg", "workload.svg"] == [file.name for file in files]
    assert all(file.read_text(encoding="utf-8").startswith("<?xml") for file in files)


def test_a_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The end of its standard error is part of the message."""
    with pytest.raises(WorkerError, match=r"onnxruntime_genai|No such file"):
        Worker(
            Path(sys.executable), "genai", {"folder": str(tmp_path), "threads": 1, "end": 2, "experts": {}}
        )


def test_llama_cpp_is_compiled_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built for the CPU, without AMX, and again where the CPU is another; never by a wheel of pip's cache."""
    python = environments.python_of(tmp_path, "llamacpp")
    installed: list[dict[str, str]] = []

    def run(_: str, command: list[str], variables: dict[str, str] | None = None) -> None:
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        if "install" in command:
            installed.append(variables or {})

    def make(*flags: str) -> int:
        monkeypatch.setattr(environments, "processor", lambda: ("a processor", set(flags)))
        environments.make_environment(tmp_path, "llamacpp", torch_index=None, only_ready=False)
        return len(installed)

    monkeypatch.setattr(environments, "run", run)
    assert [1, 1, 2, 3] == [make("avx2"), make("avx2"), make("avx2", "avx512f"), make("avx2", "amx_int8")]
    native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "PIP_NO_CACHE_DIR": "1"}
    assert [native, native] == installed[:2]
    assert "-mno-amx-int8" in installed[2]["CFLAGS"].split()
    assert installed[2]["CFLAGS"] == installed[2]["CXXFLAGS"]
    monkeypatch.setattr(environments, "processor", lambda: ("another", set[str]()))
    with pytest.raises(environments.SetupError, match="not set up"):
        environments.make_environment(tmp_path, "llamacpp", torch_index=None, only_ready=True)
