"""Measure this project beside its peers: one command, one report.

    python benchmarks/run.py [--quick] [--peers genai llamacpp …] [--suite prefill decode …] [--model smollm2 qwen3]

Sets up what is missing in the working folder (an environment per peer, models in its format), lets all systems take
turns, and writes `results.json`, `report.md` and plots. A peer that cannot be set up, or that fails, is a line in the
report. `--render FILE` makes report and plots of an earlier `results.json`; several are joined into one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.answers import install, quality, workload
from harness.environments import PEERS, SetupError
from harness.fleet import Fleet
from harness.machine import facts
from harness.measure import Results
from harness.models import MODELS, ROOT, experts_of
from harness.plan import SUITES, Case, make_plan
from harness.plots import draw
from harness.report import markdown
from harness.suites import SPEED_SUITES
from harness.targets import check_targets

ROOMS = {**SPEED_SUITES, "workload": workload, "quality": quality, "install": install}


def measure(cases: Sequence[Case], fleet: Fleet, save: Any) -> Results:
    """Run the cases; what was measured is saved after each."""
    results = Results()
    for number, case in enumerate(cases, 1):
        before = cases[max(number - 2, 0)]
        if (case.suite, case.model) != (before.suite, before.model):
            fleet.close()  # no suite meets what another has left in a worker, and memory stays free
        begin = time.monotonic()
        print(
            f"[{number}/{len(cases)}] {case.suite} {case.name}, {case.model}: {len(case.systems)} systems, "
            f"{case.rounds} rounds",
            file=sys.stderr,
            flush=True,
        )
        try:
            ROOMS[case.suite](case, fleet, results)
        except SetupError as error:
            results.fail(case.suite, case.model, case.name, "all", f"set-up: {error}")
        print(f"    {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        save(results)
    return results


def prepare(cases: Sequence[Case], fleet: Fleet) -> Iterator[str]:
    """Set up all that the cases need; yields a line for each system that can not be."""
    wanted = dict.fromkeys(
        (system, case.model, expert)
        for case in cases
        for system in case.systems
        for expert in ("", *(experts_of(case.model) if case.suite == "workload" else ()))
    )
    for system, model, expert in wanted:
        try:
            fleet.prepare(system, model, expert)
        except SetupError as error:
            yield f"{system.name}, {model} {expert}: {error}"


def join(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: of what was measured twice, the last counts."""
    joined = dict(documents[-1])
    rows = {
        (row["suite"], row["model"], row["case"], row["system"]): row
        for document in documents
        for row in document["rows"]
    }
    joined["rows"] = list(rows.values())
    joined["failures"] = [
        failure
        for document in documents
        for failure in document["failures"]
        if (failure["suite"], failure["model"], failure["case"], failure["system"]) not in rows
    ]
    joined["versions"] = {peer: own for document in documents for peer, own in document["versions"].items()}
    joined["seconds"] = sum(document["seconds"] for document in documents)
    joined["command"] = "; ".join(dict.fromkeys(document["command"] for document in documents))
    return joined


def write(document: dict[str, Any], output: Path, hidden: dict[str, str]) -> None:
    """The results and the report; places on this machine, the keys of `hidden`, are no part of them."""
    output.mkdir(parents=True, exist_ok=True)
    targets = [check.as_json() for check in check_targets(Results.from_json(document))]
    for name, text in (
        ("results.json", json.dumps({**document, "targets": targets}, indent=1) + "\n"),
        ("report.md", markdown(document)),
    ):
        for place, word in hidden.items():
            text = text.replace(place, word)
        (output / name).write_text(text, encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="default: all")
    parser.add_argument("--case", nargs="+", help="only those of these names, such as 512 (default: all)")
    parser.add_argument(
        "--model", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: both"
    )
    parser.add_argument(
        "--quick", action="store_true", help="what is set up, smallest sizes, at most two rounds"
    )
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--threads", type=int, default=2, help="of every system (default: 2)")
    parser.add_argument(
        "--work",
        type=Path,
        default=here / ".work",
        help="environments and models (default: benchmarks/.work)",
    )
    parser.add_argument(
        "--output", type=Path, help="for the report (default: results/ in the working folder)"
    )
    parser.add_argument("--heldout", type=Path, help="a folder with expert-NAME/heldout.jsonl, for quality")
    parser.add_argument("--torch-index", metavar="URL", help="package index for torch alone")
    parser.add_argument("--set-up", action="store_true", help="make environments and models, measure nothing")
    parser.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="measure nothing")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    options.output = options.output or options.work / "results"
    return options


def _told(words: Sequence[str]) -> list[str]:
    """The command line without its places."""
    places = ("--work", "--output", "--heldout")
    return [word for word, before in zip(words, ("", *words), strict=False) if not {word, before} & {*places}]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status is 0 when there is a report."""
    options = parse(arguments)
    hidden = {str(options.work): "WORK", str(ROOT): ".", str(options.heldout): "HELDOUT"}
    if options.render:
        document = join([json.loads(path.read_text(encoding="utf-8")) for path in options.render])
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        words = _told(sys.argv[1:] if arguments is None else arguments)
        begin = time.monotonic()
        document = {
            "command": " ".join(["python benchmarks/run.py", *words]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": facts(options.threads),
        }
        cases = make_plan(
            options.peers, options.suite, options.model, quick=options.quick, rounds=options.rounds
        )
        cases = [case for case in cases if not options.case or case.name in options.case]
        fleet = Fleet(
            options.work,
            threads=options.threads,
            only_ready=options.quick,
            torch_index=options.torch_index,
            heldout=options.heldout,
        )

        def save(results: Results) -> None:
            document.update(
                results.as_json(), versions=fleet.versions, seconds=round(time.monotonic() - begin)
            )
            write(document, options.output, hidden)

        if options.set_up:
            for line in prepare(cases, fleet):
                print(line)
            return 0
        try:
            measure(cases, fleet, save)
        finally:
            fleet.close()
    write(document, options.output, hidden)
    for path in (options.output / "report.md", *draw(document, options.output)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
