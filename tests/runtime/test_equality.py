"""One request gives one answer, however it is asked: alone, batched, streamed, awaited, cached, guessed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.running import Packages, engine_of, held

from hivellm_ort import Expert, ExpertManager, InferenceResult

NAMES = ("lora", "dora", "ia3")
PROMPTS = [
    "select the users",
    "count all orders of the last month, by customer",
    "a",
    "select name from users where age > 30 " * 6,
    "select name from users where age > 30 " * 6 + "and name is not null",
    "x y z " * 20,
    "fix this: [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]",
]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "prompt_lookup": False}
SEEDED: dict[str, Any] = {**GREEDY, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
WAYS = {"greedy": GREEDY, "seeded": SEEDED}


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """Three experts on one base."""
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        for name in NAMES:
            manager.load_expert(name, getattr(packages, name))
        yield manager


def fresh(manager: ExpertManager, name: str, prompt: str, options: dict[str, Any]) -> InferenceResult:
    """The answer of one request alone, with nothing kept from earlier ones."""
    engine_of(held(manager, name)).prefixes.clear()
    result = manager.generate(name, prompt, **options)
    assert 0 == result.cached_tokens
    return result


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batch(batch_size: int, options: dict[str, Any], manager: ExpertManager) -> None:
    """Rows of different lengths and experts, in more or fewer rows than requests, answer as alone."""
    requests = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    random.Random(3).shuffle(requests)
    expected = [fresh(manager, name, prompt, options).tokens for name, prompt in requests]
    assert len(set(expected)) > len(PROMPTS)
    results = manager.generate_batch(requests, batch_size=batch_size, **options)
    assert expected == [result.tokens for result in results]
    assert [name for name, _ in requests] == [result.expert.removeprefix("expert-") for result in results]


def test_options_per_row(lora: Expert) -> None:
    """A list has a value for each row, and a row's values are those of a request alone."""
    options: dict[str, list[Any]] = {
        "system": ["be brief", None, "Dialect: sql"],
        "seed": [1, 2, 3],
        "temperature": [0.0, 0.8, 1.2],
        "max_tokens": [5, 11, 17],
        "stop": ["a", ["b", "c"], None],
    }
    prompts = PROMPTS[:3]
    expected = [
        lora.generate(prompt, **{name: column[i] for name, column in options.items()})  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
    ]
    results = lora.generate_batch(prompts, **options)
    assert [one.tokens for one in expected] == [one.tokens for one in results]
    assert [one.text for one in expected] == [one.text for one in results]
    assert [one.sampling for one in expected] == [one.sampling for one in results]
    alone = [lora.generate(prompt, temperature=0.8, seed=5, max_tokens=9).tokens for prompt in prompts]
    assert alone == [
        one.tokens for one in lora.generate_batch(prompts, temperature=0.8, seed=5, max_tokens=9)
    ]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_stream_and_async(options: dict[str, Any], manager: ExpertManager) -> None:
    """The pieces of a stream, and of an asynchronous one, joined are the answer."""

    async def asked(name: str, prompt: str) -> tuple[str, InferenceResult, InferenceResult]:
        stream = manager.agenerate_stream(name, prompt, **options)
        text = "".join([piece async for piece in stream])
        return text, stream.result, await manager.agenerate(name, prompt, **options)

    for name, prompt in zip(NAMES * 2, PROMPTS, strict=False):
        expected = fresh(manager, name, prompt, options)
        stream = manager.generate_stream(name, prompt, **options)
        assert expected.text == "".join(stream)
        assert expected.tokens == stream.result.tokens
        text, streamed, awaited = asyncio.run(asked(name, prompt))
        assert (expected.text, expected.tokens, expected.tokens) == (text, streamed.tokens, awaited.tokens)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_prompt_lookup(options: dict[str, Any], manager: ExpertManager) -> None:
    """Guessed tokens change no answer, even if every guess is wrong or right."""
    accepted = 0
    for prompt in PROMPTS:
        expected = fresh(manager, "lora", prompt, {**options, "max_tokens": 200})
        guessed = fresh(manager, "lora", prompt, {**options, "max_tokens": 200, "prompt_lookup": True})
        assert expected.tokens == guessed.tokens
        assert (0, expected.finish_reason) == (expected.accepted_tokens, guessed.finish_reason)
        accepted += guessed.accepted_tokens
    if options is GREEDY:  # a random model soon repeats itself when it is greedy
        assert accepted > 100


def test_random_interleavings(manager: ExpertManager) -> None:
    """Requests of three experts in any order and any way give what each gives alone."""
    draw = random.Random(11)
    ways = [(name, prompt, kind) for name in NAMES for prompt in PROMPTS for kind in WAYS]
    expected = {way: fresh(manager, way[0], way[1], WAYS[way[2]]).tokens for way in ways}
    cached = 0
    for _ in range(100):
        name, prompt, kind = draw.choice(ways)
        options = {**WAYS[kind], "prompt_lookup": draw.random() < 0.5}
        match draw.randrange(3):
            case 0:
                results = [manager.generate(name, prompt, **options)]
                picked = [(name, prompt, kind)]
            case 1:
                stream = manager.generate_stream(name, prompt, **options)
                for _ in stream:
                    pass
                results, picked = [stream.result], [(name, prompt, kind)]
            case _:
                picked = [way for way in draw.sample(ways, 5) if way[2] == kind] + [(name, prompt, kind)]
                results = manager.generate_batch([way[:2] for way in picked], batch_size=3, **options)
        assert [expected[way] for way in picked] == [result.tokens for result in results]
        cached += sum(result.cached_tokens for result in results)
    assert cached > 0
