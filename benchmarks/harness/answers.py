"""The suites that look at answers: the expert workload, and quality."""

from __future__ import annotations

import itertools
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from harness.fleet import Fleet
from harness.measure import Results, Row, take_turns
from harness.models import EXPERTS, ROOT
from harness.plan import Case, System
from harness.workers import WorkerError
from harness.workload import heldout, requests

__all__ = ["install", "quality", "workload"]

_REFERENCE = System("transformers", "fp32")


def workload(case: Case, fleet: Fleet, results: Results) -> None:
    """Requests per minute, one after the other or all of a round at once.

    Those of a round are the same for all; their lengths are those of our own answers.

    A peer without grammars generates as many tokens as our answer has, so that it does the same work.
    """
    count = case.settings["requests"]
    ours = next(system for system in case.systems if system.peer == "ours")
    asked = list(itertools.islice(requests(fleet.source(case.model)), count * (case.rounds + 1)))
    try:  # in a process of its own, so that nothing of these prompts is kept
        worker = fleet.fresh(ours, case.model, EXPERTS)
        try:
            for request in asked:
                request["length"] = worker.ask({"op": "answer", "request": request})["tokens"]
        finally:
            worker.close()
    except WorkerError as error:
        results.fail(case.suite, case.model, case.name, ours.name, str(error))
        return

    def entrant(system: System, number: int) -> dict[str, Any]:
        worker = fleet.worker(system, case.model, EXPERTS)
        own = asked[count * (number + 1) : count * (number + 2)]
        if case.settings["together"]:
            whole = worker.ask({"op": "answers", "requests": own})
            answers, seconds, disturbed = whole["answers"], whole["seconds"], whole["disturbed"]
        else:
            answers = [worker.ask({"op": "answer", "request": request}) for request in own]
            seconds = sum(answer["seconds"] for answer in answers)
            disturbed = max(answer["disturbed"] for answer in answers)
        return {
            "seconds": seconds,
            "tokens": sum(answer["tokens"] for answer in answers) / count,
            "valid": [_valid(request, answer) for request, answer in zip(own, answers, strict=True)],
            "cached_tokens": sum(answer.get("cached_tokens", 0) for answer in answers) / count,
            "disturbed": disturbed,
        }

    entrants = {system.name: partial(entrant, system) for system in case.systems}
    samples, failures = take_turns(entrants, case.rounds, warm_up=case.warm_up)
    for name, answers in samples.items():
        extra = {key: [answer[key] for answer in answers] for key in ("tokens", "valid", "cached_tokens")}
        values = [60 * count / answer["seconds"] for answer in answers]
        disturbed = [answer["disturbed"] for answer in answers]
        results.rows.append(
            Row(case.suite, case.model, case.name, name, "requests/min", values, disturbed, extra)
        )
    for name, reason in failures.items():
        results.fail(case.suite, case.model, case.name, name, reason)


def _valid(request: dict[str, Any], answer: dict[str, Any]) -> bool | None:
    """Whether the answer is complete under its grammar; JSON is read once more."""
    valid: bool | None = answer["valid"]
    if valid and "text" in answer and request["expert"] != "sql":
        try:
            json.loads(answer["text"])
        except ValueError:
            return False
    return valid


def quality(case: Case, fleet: Fleet, results: Results) -> None:
    """KL against transformers in fp32, or answers to held-out prompts."""
    if case.name == "held-out":
        _answers(case, fleet, results)
    else:
        _divergence(case, fleet, results)


def _divergence(case: Case, fleet: Fleet, results: Results) -> None:
    """KL(reference || system) per token in nats, over windows of the READMEs in `models/`."""
    windows, width = case.settings["windows"], case.settings["window"]
    tokenizer = Tokenizer.from_file(str(fleet.source(case.model) / "tokenizer.json"))
    paths = sorted((ROOT / "models").rglob("README.md"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = [ids[start * width : (start + 1) * width] for start in range(windows)]
    with tempfile.TemporaryDirectory() as folder:

        def log_probabilities(system: System, part: list[int], worker: Any) -> np.ndarray:
            file = Path(folder) / "logits.npy"
            worker.ask({"op": "logits", "ids": part, "file": str(file)})
            logits = np.load(file).astype(np.float64)
            logits -= logits.max(axis=-1, keepdims=True)
            return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

        for system in case.systems:
            if system == _REFERENCE:
                continue
            try:
                kl, same = [], []
                for part in parts:
                    p = log_probabilities(_REFERENCE, part, fleet.worker(_REFERENCE, case.model))
                    q = log_probabilities(system, part, fleet.worker(system, case.model))
                    kl.append((np.exp(p) * (p - q)).sum(axis=-1))
                    same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
            except WorkerError as error:
                results.fail(case.suite, case.model, case.name, system.name, str(error))
                continue
            values, agreement = np.concatenate(kl), float(np.concatenate(same).mean())
            extra = {"same_first_token": agreement, "p99": float(np.quantile(values, 0.99))}
            row = Row(
                case.suite, case.model, case.name, system.name, "nats", [float(values.mean())], [], extra
            )
            results.rows.append(row)


def _answers(case: Case, fleet: Fleet, results: Results) -> None:
    """Exact answers to the experts' held-out prompts, and how many equal those of transformers token by token.

    The latter where transformers is among the peers.
    """
    folder, source = fleet.heldout, fleet.source(case.model)
    if folder is None:
        results.fail(
            case.suite,
            case.model,
            case.name,
            "all",
            "no --heldout FOLDER: its data is not part of this repository",
        )
        return
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    prompts = {expert: heldout(folder, source, expert) for expert in EXPERTS}
    answers: dict[str, dict[str, list[list[int]]]] = {}
    for system in case.systems:
        if system.peer != "ours" and system != _REFERENCE:
            continue
        try:
            worker = fleet.worker(system, case.model, EXPERTS)
            answers[system.name] = {
                expert: [worker.ask({"op": "answer", "request": one})["ids"] for one in own]
                for expert, own in prompts.items()
            }
        except WorkerError as error:
            results.fail(case.suite, case.model, case.name, system.name, str(error))
    for name, by_expert in answers.items():
        for expert, own in by_expert.items():
            texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in own]
            exact = [
                text.rstrip(";") == prompt["reference"].strip().rstrip(";")
                for text, prompt in zip(texts, prompts[expert], strict=True)
            ]
            extra: dict[str, Any] = {"prompts": len(own)}
            if _REFERENCE.name in answers:
                reference = answers[_REFERENCE.name][expert]
                extra["equal_tokens"] = sum(a == b for a, b in zip(own, reference, strict=True))
            results.rows.append(
                Row(case.suite, case.model, f"exact {expert}", name, "answers", [sum(exact)], [], extra)
            )


def install(case: Case, fleet: Fleet, results: Results) -> None:
    """Megabytes that running needs, without what only conversion needs; our own in an environment made for it."""
    import slim

    from harness.environments import ENVIRONMENTS

    for system in case.systems:
        try:
            extra: dict[str, Any] = {}
            if system.peer == "ours":
                with tempfile.TemporaryDirectory() as folder:
                    extra = slim.measure(slim.install(Path(folder) / "venv"))
                size = float(extra["megabytes"])
            else:
                script = Path(__file__).parents[1] / "peers" / "closure.py"
                command = [str(script), *ENVIRONMENTS[system.peer].runtime]
                extra = json.loads(slim._run(fleet.python(system.peer), *command))
                size = extra["megabytes"]
        except (WorkerError, SystemExit) as error:
            results.fail(case.suite, case.model, case.name, system.peer, str(error)[-300:])
            continue
        results.rows.append(Row(case.suite, case.model, case.name, system.peer, "MB", [size], [], extra))
