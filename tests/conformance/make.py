"""Make the conformance vectors again, and check them against transformers and PEFT.

    PYTHONPATH=tests python -m conformance.make [--check]

It needs the extra `export`. Answers come from this runtime on the golden packages in fp32, and are written only if

- a model of transformers with PEFT's adapter gives the same tokens (not where a grammar or bad words choose), and the
  same log probabilities of the tokens;
- they stay the same when every logit is moved by up to 1e-4, so that another machine's rounding does not change them.

With `--check` nothing is written: the vectors that are there must be the ones that are made.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.answers import answer_lines
from conformance.facts import fact_lines
from conformance.reference import Reference, answerable
from conformance.vectors import FOLDER, Line, Runner, differences

__all__ = ["made", "written"]

_TOLERANCE = 1e-3
_NOISE = 1e-4
_ORDER = (
    "id",
    "about",
    "packages",
    "load",
    "call",
    "expert",
    "prompt",
    "prompts",
    "answers",
    "messages",
    "tools",
    "tags",
    "keys",
    "grammar",
    "samples",
    "format",
    "names",
    "text",
    "fields",
    "options",
    "expect",
    "error",
)
_GENERATIONS = ("generate", "stream", "batch")


def made(work: Path) -> dict[str, list[Line]]:
    """Every line by file.

    Args:
        work: a folder for packages and models.

    Raises:
        AssertionError: a line is not what a reference says, or depends on rounding.
    """
    runner, reference = Runner(work / "cache"), Reference(work)
    faults: list[str] = []
    files: dict[str, list[Line]] = {}
    for name, lines in {**answer_lines(), **fact_lines()}.items():
        files[name] = []
        for number, line in enumerate(lines, 1):
            line = {**_filled(line, runner), "id": f"{name}-{number:03}"}
            found = runner.run(line)
            if "error" in line or "error" in found:
                faults += [f"{line['id']}: {text}" for text in differences(line, found)]
            else:
                line["expect"] = _expected(line, found)
                if line["call"] == "score":
                    faults += [f"{line['id']}: {text}" for text in _score_faults(line, runner, reference)]
                if line["call"] in _GENERATIONS:
                    faults += [f"{line['id']}: {text}" for text in _faults(line, runner, reference)]
            files[name].append({field: line[field] for field in _ORDER if field in line})
    runner.close()
    if faults:
        raise AssertionError("\n".join(faults))
    return files


def written(lines: list[Line]) -> bytes:
    """A file of lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _filled(line: Line, runner: Runner) -> Line:
    """The line with the pieces of its own answer in place of `{begin:end}`."""
    stop = line.get("options", {}).get("stop")
    if stop is None or "{" not in json.dumps(stop):
        return line
    options = {name: value for name, value in line["options"].items() if name not in ("stop", "include_stop")}
    text = runner.run({**line, "call": "generate", "options": options})["text"]

    def cut(one: str) -> str:
        begin, _, end = one.strip("{}").partition(":")
        return text[int(begin) : int(end)] if one.startswith("{") else one

    stops = cut(stop) if isinstance(stop, str) else [cut(one) for one in stop]
    return {**line, "options": {**line["options"], "stop": stops}}


def _expected(line: Line, found: dict[str, Any]) -> dict[str, Any]:
    """What is expected of a line: all of what was found that says something."""
    if line["call"] == "batch":
        return {"answers": [_expected({"call": "generate"}, one) for one in found["answers"]]}
    if line["call"] == "route":
        ranking = found["ranking"]
        return {"ranking": {**ranking, "scores": _rounded(ranking["scores"]), "tolerance": 1e-6}}
    if line["call"] == "score":
        return {"best": found["best"], "scores": {**_rounded(found["scores"]), "tolerance": _TOLERANCE}}
    if line["call"] not in _GENERATIONS:
        return found
    kept = {name: value for name, value in found.items() if value not in (None, "") or name == "text"}
    if "logprobs" in kept:
        kept["logprobs"] = {**_rounded(kept["logprobs"]), "tolerance": _TOLERANCE}
    return kept


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def _faults(line: Line, runner: Runner, reference: Reference) -> list[str]:
    """What speaks against the answers of a line."""
    faults = []
    for seed in range(3):
        noisy = runner.run(line, processors=[_noise(seed)])
        faults += [f"it depends on rounding: {text}" for text in differences(_without_numbers(line), noisy)]
    if line["call"] == "batch":
        for index, (prompt, expect) in enumerate(
            zip(line["prompts"], line["expect"]["answers"], strict=True)
        ):
            name, text = prompt if isinstance(prompt, list) else (next(iter(line["packages"])), prompt)
            own = {
                option: value[index] if isinstance(value, list) and not _flat(option, value) else value
                for option, value in line["options"].items()
                if option != "batch_size"
            }
            one = {
                "packages": {name: line["packages"][name]},
                "prompt": text,
                "options": own,
                "expect": expect,
            }
            faults += [f"answers[{index}]: {text}" for text in _against_peft(one, runner, reference)]
        return faults
    return faults + _against_peft(line, runner, reference)


def _flat(option: str, value: list[Any]) -> bool:
    return option in ("stop", "choice", "bad_words") and all(isinstance(one, str) for one in value)


def _against_peft(line: Line, runner: Runner, reference: Reference) -> list[str]:
    name = line.get("expert") or next(iter(line["packages"]))
    file = line["packages"][name]
    package = file.removesuffix(".expert")
    options = line.get("options", {})
    prompt = {**line, "packages": {name: file}, "call": "prompt", "options": {}}
    prompt["options"] = {n: v for n, v in options.items() if n in ("system", "schema", "enable_thinking")}
    prompt_ids = runner.run(prompt)["prompt_ids"]
    expect = line["expect"]
    tokens, faults = expect["tokens"], []
    if len(prompt_ids) != expect["prompt_tokens"]:
        faults.append(f"{len(prompt_ids)} tokens of the prompt, and not {expect['prompt_tokens']}")
    # Of the package `grammar` its manifest asks for the grammar.
    chosen = package == "grammar" and options.get("grammar") is not False
    if answerable({name: value for name, value in options.items() if value is not None}) and not chosen:
        right = reference.tokens(package, prompt_ids, options, len(tokens))
        if right != tokens:
            faults.append(f"PEFT gives {right}, and not {tokens}")
    if "logprobs" in expect:
        logits = reference.logits(package, [*prompt_ids, *tokens]).astype(np.float64)
        shares = _logprobs(logits[len(prompt_ids) - 1 : -1])
        right_values = [float(row[token]) for row, token in zip(shares, tokens, strict=True)]
        if not np.allclose(right_values, expect["logprobs"]["chosen"], rtol=0, atol=1e-4):
            faults.append(f"PEFT gives log probabilities {right_values}")
        for row, best_ones in zip(shares, expect["logprobs"]["top"], strict=True):
            order = np.argsort(-row, kind="stable")[: len(best_ones)]
            if [int(token) for token in order] != [token for token, _ in best_ones]:
                faults.append(f"PEFT's best tokens are {order.tolist()}")
    return faults


def _score_faults(line: Line, runner: Runner, reference: Reference) -> list[str]:
    """What speaks against the scores of a line; an answer that another one begins with counts with its end."""
    (package,) = line["packages"]
    prompt_ids = runner.run({**line, "call": "prompt"})["prompt_ids"]
    answers = [reference.encode(package, answer) for answer in line["answers"]]
    right = []
    for own in answers:
        logits = reference.logits(package, [*prompt_ids, *own]).astype(np.float64)
        values = _logprobs(logits[len(prompt_ids) - 1 :])
        total = sum(float(row[token]) for row, token in zip(values, own, strict=False))
        if any(own != other and own == other[: len(own)] for other in answers):
            total += float(np.log(np.exp(values[-1][list(reference.ends)]).sum()))
        right.append(total)
    if np.allclose(right, line["expect"]["scores"]["logprobs"], rtol=0, atol=1e-4):
        return []
    return [f"PEFT gives log probabilities {right}"]


def _logprobs(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    best = logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - best - np.log(np.exp(logits - best).sum(axis=-1, keepdims=True)))


def _without_numbers(line: Line) -> Line:
    """The line without what noise changes."""

    def kept(expect: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in expect.items() if name != "logprobs"}

    expect = kept(line["expect"])
    if "answers" in expect:
        expect["answers"] = [kept(one) for one in expect["answers"]]
    return {**line, "expect": expect}


def _noise(seed: int) -> Callable[[Any, Any], Any]:
    def process(token_ids: Any, logits: Any) -> Any:
        rng = np.random.default_rng((seed, len(token_ids)))
        return logits + rng.uniform(-_NOISE, _NOISE, logits.shape).astype(np.float32)

    return process


def _main() -> None:
    with tempfile.TemporaryDirectory() as work:
        files = {f"{name}.jsonl": written(lines) for name, lines in made(Path(work)).items()}
    if "--check" in sys.argv[1:]:
        there = {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")}
        if there != files:
            raise SystemExit("the vectors are not the ones that are made: run this without --check")
        return
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    _main()
