"""How likely given answers are: against the loop's own probabilities, and in how few passes."""

from __future__ import annotations

import asyncio
import itertools
from math import exp, fsum, log
from typing import Any

import numpy as np
import pytest
from support.running import PROMPT, Packages, engine_of, held

from hivellm_ort import Expert, ExpertManager, InferenceError, OptionError, OptionTypeError
from hivellm_ort.decoding.logprobs import AnswerTree, shares
from hivellm_ort.errors import ContextLengthError

ANSWERS = ["SELECT", "SELECT 1", "SELECT 12", "no", "SELECT *"]


def of_the_model(expert: Expert, answer: list[int], ends: bool) -> float:
    """The log probability of an answer, from the logits of one pass over prompt and answer, in float64."""
    prompt = expert.builder.build(PROMPT, {}).request.prompt_ids
    decoder = engine_of(expert).decoder(adapters=True)
    decoder.start(0, expert.adapter, len(prompt) + len(answer) + 1)
    logits = decoder.append(0, [*prompt, *answer], len(answer) + 1).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    total = fsum(logprobs[place, token] for place, token in enumerate(answer))
    if ends:
        ending = sorted(expert.builder.eos_token_ids)
        total += log(fsum(exp(logprobs[len(answer), token]) for token in ending))
    return total


def test_scores_are_those_of_the_model(dora: Expert) -> None:
    """Each answer's log probability is that of its tokens, with the end token if another answer begins with it."""
    result = dora.score(PROMPT, ANSWERS)
    tokens = {answer: dora.tokenizer.encode(answer) for answer in ANSWERS}
    for scored in result.answers:
        own = tokens[scored.text]
        begins = any(own == other[: len(own)] and own != other for other in tokens.values())
        assert list(scored.token_ids) == own
        assert of_the_model(dora, own, begins) == pytest.approx(scored.logprob, abs=1e-4)
    assert ANSWERS == [scored.text for scored in result.answers]
    assert 1.0 == pytest.approx(sum(scored.share for scored in result.answers))
    assert max(result.answers, key=lambda one: one.share) == result.best
    assert result.prompt_tokens == len(dora.builder.build(PROMPT, {}).request.prompt_ids)
    assert result.answers[0].text == result.to_dict()["answers"][0]["text"]


def test_what_was_read_is_kept(dora: Expert) -> None:
    """A second request takes the prompt over and says the same; what is generated after it is not disturbed."""
    prompt = "count the orders of every customer in the table of orders"
    expected = dora.generate(prompt, max_tokens=10).tokens
    engine_of(dora).prefixes.clear()
    first = dora.score(prompt, ANSWERS)
    again = dora.score(prompt, list(reversed(ANSWERS)))
    assert 0 == first.cached_tokens < again.cached_tokens
    assert [one.logprob for one in first.answers] == pytest.approx(
        [one.logprob for one in reversed(again.answers)], abs=1e-4
    )
    assert expected == dora.generate(prompt, max_tokens=10).tokens


def test_beside_others(packages: Packages) -> None:
    """While answers are generated, and asynchronously, scores are the same; the base itself has others."""
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        manager.load_expert("dora", packages.dora)
        alone = manager.score("dora", PROMPT, ANSWERS)
        expected = manager.generate("dora", PROMPT, max_tokens=60, prompt_lookup=False).tokens
        streams = [
            manager.generate_stream("dora", PROMPT, max_tokens=60, prompt_lookup=False) for _ in range(3)
        ]
        beside = [manager.score("dora", PROMPT, ANSWERS) for _ in range(3)]
        beside.append(asyncio.run(held(manager, "dora").ascore(PROMPT, ANSWERS)))
        beside.append(asyncio.run(manager.ascore("dora", PROMPT, ANSWERS)))
        for stream in streams:
            assert expected == (list(stream) and stream.result.tokens)
        for result in beside:
            assert [one.logprob for one in alone.answers] == pytest.approx(
                [one.logprob for one in result.answers], abs=1e-4
            )
        base = manager.score(manager.BASE, PROMPT, ANSWERS)
        assert alone.best.logprob != base.best.logprob
        ended = manager.metrics.snapshot()["requests_total"]["dora"]
        assert 5 == ended["scored"]


def test_bad_questions(dora: Expert) -> None:
    """Wrong answers and options are refused by name; a request whose time is over says so."""
    for answers, error, match in (
        ("yes", OptionTypeError, "answers is str"),
        ([], OptionError, "0 texts"),
        (["a"] * 1001, OptionError, "1001 texts"),
        (["a", ""], OptionError, r"answers\[1\] is empty"),
        (["a", 5], OptionTypeError, r"answers\[1\] is int 5"),
        (["a", "b", "a"], OptionError, "'a' twice"),
    ):
        with pytest.raises(error, match=match):
            dora.score(PROMPT, answers)  # type: ignore[arg-type]
    with pytest.raises(OptionTypeError, match="temperature: no option of a score"):
        dora.score(PROMPT, ["a"], temperature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ContextLengthError):
        dora.score(PROMPT, ["a", "b" * 5000])
    with pytest.raises(InferenceError, match="its time was over"):
        dora.score(PROMPT, ["a", "b"], timeout=1e-9)


def test_few_passes() -> None:
    """There is one pass per branch of answers. Answers of one token need only the prompt's pass."""
    assert [] == AnswerTree([[1], [2], [3]], {0}).passes
    assert [((1,), 0)] == AnswerTree([[1, 2], [1, 3], [4]], {0}).passes
    assert [((1,), 0)] == AnswerTree([[1], [1, 3]], {0}).passes
    tree = AnswerTree([[1, 2, 3, 9], [1, 2, 3], [1, 4, 9], [5, 1]], {0})
    assert [((1, 2, 3), 0), ((1, 4), 1), ((5,), 0)] == tree.passes


def test_a_tree_reads_what_it_says() -> None:
    """For random answers every score is the sum along its path, with any shared prefixes."""
    generator = np.random.default_rng(5)
    for _ in range(50):
        count = int(generator.integers(1, 12))
        answers = {tuple(map(int, generator.integers(1, 4, generator.integers(1, 5)))) for _ in range(count)}
        table: dict[Any, np.ndarray] = {}

        def logits(beginning: tuple[int, ...], table: dict[Any, np.ndarray] = table) -> np.ndarray:
            return table.setdefault(beginning, generator.normal(size=5).astype(np.float32))

        ordered = sorted(answers)
        tree = AnswerTree(ordered, {0})
        tree.note((), 0, logits(())[np.newaxis])
        for path, shared in tree.passes:
            rows = [logits(path[: count + 1]) for count in range(shared, len(path))]
            tree.note(path, shared + 1, np.stack(rows))
        for answer, score in zip(ordered, tree.scores(), strict=True):
            ends = any(answer == other[: len(answer)] and answer != other for other in answers)
            steps = itertools.chain(enumerate(answer), [(len(answer), 0)] if ends else [])
            expected = 0.0
            for place, token in steps:
                row = logits(answer[:place]).astype(np.float64)
                expected += row[token] - np.log(np.exp(row).sum())
            assert expected == pytest.approx(score, abs=1e-4)


def test_shares() -> None:
    """The shares add up to 1, even for unlikely or impossible answers."""
    assert [0.75, 0.25] == pytest.approx(shares([log(0.3), log(0.1)]))
    assert [0.5, 0.5] == pytest.approx(shares([-2000.0, -2000.0]))
    assert [1.0, 0.0] == shares([-1.0, float("-inf")])
    assert [0.5, 0.5] == shares([float("-inf")] * 2)
