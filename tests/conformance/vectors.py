"""Run a line of the conformance vectors through the public API, and compare what comes with what is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from hivellm_ort import Expert, ExpertError, ExpertManager, Grammar, InferenceResult, ToolCall, Trust
from hivellm_ort.cli.main import main
from hivellm_ort.grammar.report import accepts
from hivellm_ort.integrity import verify
from hivellm_ort.package.store import Store, open_package
from hivellm_ort.tools.formats import FORMATS
from hivellm_ort.tools.parser import read_calls

__all__ = ["FOLDER", "ROOT", "Line", "Runner", "differences", "lines"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance"
_PACKAGES = ROOT / "tests" / "golden"

Line = dict[str, Any]


def lines() -> Iterator[tuple[str, Line]]:
    """Every line with the name of its file."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            yield path.name, json.loads(text)


class Runner:
    """Loads what lines name, once, and runs them.

    Args:
        cache: where packages are unpacked.
    """

    def __init__(self, cache: Path):
        self._cache = cache
        self._experts: dict[str, Expert] = {}
        self._managers: dict[str, ExpertManager] = {}

    def run(self, line: Line, **options: Any) -> dict[str, Any]:
        """What a line gives: fields of `expect`, or `error`.

        Args:
            line: the line.
            options: further options of a generation.
        """
        call = getattr(self, f"_{line['call']}")
        try:
            return dict(call(line, {**_options(line), **options}))
        except ExpertError as error:
            return {"error": {"type": type(error).__name__, "message": str(error)}}

    def close(self) -> None:
        """Unload everything."""
        for one in (*self._experts.values(), *self._managers.values()):
            one.close()

    def _loaded(self, path: Path, load: Mapping[str, Any]) -> Expert:
        trust = Trust(load.get("trust", "off"), load.get("keys"))
        base = _PACKAGES / load["base"] if "base" in load else None
        return Expert.load(path, base=base, device="cpu", trust=trust, cache_dir=self._cache, threads=1)

    def _expert(self, line: Line) -> Expert:
        ((_, file),) = line["packages"].items()
        key = json.dumps([file, line.get("load")])
        if key not in self._experts:
            self._experts[key] = self._loaded(_PACKAGES / file, line.get("load", {}))
        return self._experts[key]

    def _manager(self, line: Line) -> ExpertManager:
        key = json.dumps(line["packages"])
        if key not in self._managers:
            manager = ExpertManager(device="cpu", cache_dir=self._cache, threads=1, trust="off")
            self._managers[key] = manager
            for name, file in line["packages"].items():
                manager.load_expert(name, _PACKAGES / file)
        return self._managers[key]

    def _load(self, line: Line, _: Any) -> dict[str, Any]:
        ((_name, file),) = line["packages"].items()
        with self._loaded(_PACKAGES / file, line.get("load", {})) as expert:
            return {"name": expert.name, "precision": expert.base.precision, "target": expert.base.target}

    def _generate(self, line: Line, options: dict[str, Any]) -> dict[str, Any]:
        if len(line["packages"]) == 1:
            return _answer(self._expert(line).generate(line.get("prompt"), **options))
        return _answer(self._manager(line).generate(line.get("expert"), line.get("prompt"), **options))

    def _stream(self, line: Line, options: dict[str, Any]) -> dict[str, Any]:
        stream = self._expert(line).generate_stream(line.get("prompt"), **options)
        pieces = list(stream)
        return {**_answer(stream.result), "pieces": pieces}

    def _batch(self, line: Line, options: dict[str, Any]) -> dict[str, Any]:
        if len(line["packages"]) == 1:
            results = self._expert(line).generate_batch(line["prompts"], **options)
        else:
            requests = [(name, prompt) for name, prompt in line["prompts"]]
            results = self._manager(line).generate_batch(requests, **options)
        return {"answers": [_answer(result) for result in results]}

    def _prompt(self, line: Line, options: dict[str, Any]) -> dict[str, Any]:
        built = self._expert(line).builder.build(line.get("prompt"), options)  # type: ignore[arg-type]
        return {"prompt_ids": list(built.request.prompt_ids)}

    def _score(self, line: Line, options: dict[str, Any]) -> dict[str, Any]:
        result = self._expert(line).score(line.get("prompt"), line["answers"], **options)
        return {
            "best": result.best.text,
            "scores": {
                "logprobs": [one.logprob for one in result.answers],
                "shares": [one.share for one in result.answers],
            },
        }

    def _route(self, line: Line, _: Any) -> dict[str, Any]:
        routes = self._manager(line).route(line["prompt"], tags=line.get("tags"))
        return {
            "ranking": {
                "names": [route.name for route in routes],
                "scores": [route.score for route in routes],
            }
        }

    def _grammar(self, line: Line, _: Any) -> dict[str, Any]:
        kind, text = line["grammar"]["kind"], line["grammar"]["text"]
        grammar = getattr(Grammar, kind)(text)
        failing = accepts(grammar, line["samples"])
        return {"accepted": [place is None for place in failing]}

    def _calls(self, line: Line, _: Any) -> dict[str, Any]:
        call_format = FORMATS[line["format"]]
        content, calls = read_calls(line["text"], call_format, names=line.get("names"))
        return {"content": content, "tool_calls": _calls(calls)}

    def _inspect(self, line: Line, _: Any) -> dict[str, Any]:
        ((_name, file),) = line["packages"].items()
        environment = {"HIVELLM_HOME": str(self._cache)}
        done = CliRunner(env=environment).invoke(main, ["inspect", str(_PACKAGES / file), "--json"])
        document = json.loads(done.stdout)
        if "error" in document:
            return {"error": document["error"]}
        return {"fields": {pointer: _at(document, pointer) for pointer in line["fields"]}}

    def _verify(self, line: Line, _: Any) -> dict[str, Any]:
        ((_name, file),) = line["packages"].items()
        verdict = verify(open_package(_PACKAGES / file, Store(self._cache)), line.get("keys", {}))
        found = {
            "status": verdict.status,
            "signer": verdict.signer,
            "key": verdict.key,
            "scheme": verdict.scheme,
        }
        return {"verdict": found}


def differences(line: Line, found: Mapping[str, Any]) -> list[str]:
    """In what a line's outcome differs from what it expects; empty where it is right."""
    if "error" in line or "error" in found:
        expected, actual = line.get("error"), found.get("error")
        if expected is None or actual is None:
            return [f"expected {expected or 'an answer'}, got {actual or dict(found)}"]
        missing = [text for text in expected["contains"] if text not in actual["message"]]
        same = expected["type"] == actual["type"] and not missing
        return [] if same else [f"expected {expected}, got {actual}"]
    return [text for field, value in line["expect"].items() for text in _compared(field, value, found[field])]


def _compared(field: str, expected: Any, actual: Any) -> Iterator[str]:
    if field == "answers":
        if len(expected) != len(actual):
            yield f"{len(actual)} answers, not {len(expected)}"
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            for name, value in one.items():
                for text in _compared(name, value, other[name]):
                    yield f"answers[{index}]: {text}"
    elif isinstance(expected, dict) and "tolerance" in expected:
        for name, value in expected.items():
            if name != "tolerance" and not _near(value, actual[name], expected["tolerance"]):
                yield f"{field}.{name}: expected {value}, got {actual[name]}"
    elif expected != actual:
        yield f"{field}: expected {expected!r}, got {actual!r}"


def _near(expected: Any, actual: Any, tolerance: float) -> bool:
    """Equal, with a tolerance for numbers that are not whole."""
    if isinstance(expected, list):
        pairs = zip(expected, actual, strict=False)
        return len(expected) == len(actual) and all(_near(one, other, tolerance) for one, other in pairs)
    if isinstance(expected, float):
        return expected == actual or abs(expected - actual) <= tolerance
    return bool(expected == actual)


def _options(line: Line) -> dict[str, Any]:
    """The options of a line; JSON has no integers as keys."""
    options = {**line.get("options", {}), **{n: line[n] for n in ("messages", "tools") if n in line}}
    bias = options.get("logit_bias")
    if isinstance(bias, dict):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    return options


def _answer(result: InferenceResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt_tokens": result.prompt_tokens,
        "tokens": list(result.tokens),
        "text": result.text,
        "reasoning": result.reasoning,
        "finish_reason": result.finish_reason,
        "grammar_complete": result.grammar_complete,
        "expert": result.expert,
    }
    if result.tool_calls:
        found |= {"content": result.content, "tool_calls": _calls(result.tool_calls)}
    if result.logprobs is not None:
        found["logprobs"] = {
            "chosen": [one.logprob for one in result.logprobs],
            "top": [[[token, value] for token, value in one.top] for one in result.logprobs],
        }
    return found


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls without their ids, which are random."""
    return [{"name": call.name, "arguments": call.arguments, "complete": call.complete} for call in calls]


def _at(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document
