"""Packages of the portable target, loaded and asked as any other, answer as those of the target `cpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording import RULES, Recording

from hivellm_ort import Expert, ExpertManager, InferenceResult

PROMPTS = ["select the users", "a", "select name from users where age > 30 " * 4, "x y z " * 20]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "prompt_lookup": False}
NAMES = ("lora", "dora", None)  # None is the base itself
Load = Callable[[str, str], ExpertManager]


@pytest.fixture(scope="module")
def load(package: Callable[..., Path], work: Path) -> Iterator[Load]:
    """A manager with both experts of a target."""
    managers: dict[tuple[str, str], ExpertManager] = {}

    def make(target: str, precision: str) -> ExpertManager:
        key = (target, precision)
        if key not in managers:
            manager = ExpertManager(cache_dir=work / "cache", device="cpu", threads=1, trust="off")
            for name in ("lora", "dora"):
                manager.load_expert(name, next(package(target, precision).glob(f"*{name}*.expert")))
            managers[key] = manager
        return managers[key]

    yield make
    for manager in managers.values():
        manager.close()


@pytest.fixture
def cpu(load: Load) -> ExpertManager:
    """The experts of target `cpu`."""
    return load("cpu", "fp32")


@pytest.fixture
def portable(load: Load) -> ExpertManager:
    """The same of target `portable`."""
    return load("portable", "fp32")


def forget(manager: ExpertManager) -> None:
    """Forget what is kept of prompts."""
    for base in manager._registry.bases():
        base.engine.prefixes.clear()


def ask(manager: ExpertManager, name: str | None, prompt: str, **options: Any) -> InferenceResult:
    """Ask an expert, or the base."""
    if name is None:
        return manager.generate("base", prompt, **options)
    return manager.generate(name, prompt, **options)


def test_alone_and_again(cpu: ExpertManager, portable: ExpertManager) -> None:
    """Greedy tokens are equal, of the base too, and stay so when the prompt is kept from before."""
    answers = set()
    for name in NAMES:
        for prompt in PROMPTS:
            for manager in (cpu, portable):
                forget(manager)
            expected = ask(cpu, name, prompt, **GREEDY)
            results = [ask(portable, name, prompt, **GREEDY) for _ in range(2)]
            assert [expected.tokens] * 2 == [result.tokens for result in results]
            assert [0, expected.prompt_tokens - 2] == [result.cached_tokens for result in results]
            answers.add(expected.tokens)
    assert len(NAMES) * len(PROMPTS) == len(answers)


def test_batch(cpu: ExpertManager, portable: ExpertManager) -> None:
    """Rows of different experts and lengths answer as alone, though each has runs of its own."""
    requests = [(name, prompt) for prompt in PROMPTS for name in ("lora", "dora")]
    expected = [ask(cpu, name, prompt, **GREEDY).tokens for name, prompt in requests]
    forget(portable)
    results = portable.generate_batch(requests, batch_size=4, **GREEDY)
    assert expected == [result.tokens for result in results]


def test_prompt_lookup(cpu: ExpertManager, portable: ExpertManager) -> None:
    """Guessed tokens are verified in buckets, with padding, and change nothing."""
    accepted = 0
    for name in ("lora", "dora"):
        options = {**GREEDY, "max_tokens": 120}
        expected = ask(cpu, name, PROMPTS[2], **options)
        result = ask(portable, name, PROMPTS[2], **{**options, "prompt_lookup": True})
        assert expected.tokens == result.tokens
        accepted += result.accepted_tokens
    assert accepted > 20


def test_grammar(cpu: ExpertManager, portable: ExpertManager) -> None:
    """What a grammar forces is read several tokens at once, alone and before a step of several rows."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "count": {"type": "integer", "maximum": 99}},
        "required": ["city", "count"],
        "additionalProperties": False,
    }
    options = {**GREEDY, "max_tokens": 60, "json_schema": schema}
    expected = [ask(cpu, name, PROMPTS[0], **options) for name in ("lora", "dora")]
    alone = [ask(portable, name, PROMPTS[0], **options) for name in ("lora", "dora")]
    batch = portable.generate_batch([("lora", PROMPTS[0]), ("dora", PROMPTS[0])], **options)
    for results in (alone, batch):
        assert [one.text for one in expected] == [one.text for one in results]
        assert [True, True] == [one.grammar_complete for one in results]
        assert min(one.forced_tokens for one in results) > 5


def test_expert(package: Callable[..., Path], work: Path, cpu: ExpertManager) -> None:
    """Loaded alone and by the name of a device, an expert generates and streams."""
    path = next(package("portable", "fp32").glob("*dora*.expert"))
    with Expert.load(path, device="cpu", cache_dir=work / "alone", threads=1, trust="off") as expert:
        expected = ask(cpu, "dora", PROMPTS[0], **GREEDY)
        assert expected.tokens == expert.generate(PROMPTS[0], **GREEDY).tokens
        stream = expert.generate_stream(PROMPTS[0], **GREEDY)
        assert expected.text == "".join(stream)
        assert expected.tokens == stream.result.tokens


@pytest.mark.parametrize("form", [("cpu", "fp32"), ("portable", "fp32"), ("dml", "fp16")], ids="-".join)
def test_rules_are_kept(
    form: tuple[str, str], package: Callable[..., Path], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run of several experts' requests at once, with grammars and guesses, breaks a rule of its form."""
    paths = {name: next(package(*form).glob(f"*{name}*.expert")) for name in ("lora", "dora")}
    # With as many threads as no other test, so that sessions are started and not shared.
    options: dict[str, Any] = {"cache_dir": work / "recorded", "threads": 2, "trust": "off"}
    where = {"device": "dml", "fallback": True} if form[0] == "dml" else {"device": "cpu"}
    with Expert.load(paths["lora"], **options, **where) as expert:
        config = expert.base
    recording = Recording(monkeypatch, RULES[form[0]], config)
    with ExpertManager(**options, **where) as manager:
        for name, path in paths.items():
            manager.load_expert(name, path)
        requests = [(name, prompt) for prompt in PROMPTS for name in ("lora", "dora")]
        choices = [None, ["select the users", "select the orders"]] * len(PROMPTS)
        for _ in range(2):
            manager.generate_batch(requests, temperature=0, max_tokens=40, batch_size=3, choice=choices)
        result = manager.generate("lora", PROMPTS[2], temperature=0, max_tokens=100)
    assert 100 == result.completion_tokens
    assert [] == recording.faults
    assert len(recording.runs) > 100
