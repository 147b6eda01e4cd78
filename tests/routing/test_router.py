"""Ranking: order, own scorers, threads and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_samples import OWN, WRITTEN, candidate

from hivellm_ort.routing import Candidate, KeywordScorer, Router, Tags, rank


def test_order_of_equals() -> None:
    """Equal scores are ranked by priority, then by name, wherever they stood."""
    experts = [
        candidate("b", "zebra"),
        candidate("a", "zebra"),
        candidate("c", "zebra", priority=0.9),
        candidate("d", "yak"),
    ]

    def same(prompt: str, expert: Candidate, tags: Tags, /) -> tuple[float, Sequence[str]]:
        return 1, ("same",)

    for order in (experts, experts[::-1]):
        assert ["c", "a", "b", "d"] == [route.name for route in rank("zebra", order, scorer=same)]
        assert ["c", "a", "b"] == [route.name for route in rank("zebra", order)]


def test_unfit_candidates() -> None:
    """Only candidates that fit are ranked, unless all are asked for."""
    experts = [candidate("a", "zebra"), candidate("b", "yak"), candidate("c", exclude=("zebra",))]
    router = Router(experts)
    assert ["a"] == [route.name for route in router.rank("zebra")]
    routes = router.rank("zebra", include_unfit=True)
    assert [("a", True), ("b", False), ("c", False)] == [(route.name, route.fits) for route in routes]
    assert [] == router.rank("nothing")


def test_no_candidates() -> None:
    """Nothing to choose among is no error."""
    assert [] == rank("x", [])


def test_own_scorer() -> None:
    """A scorer gets prompt, candidate and tags as a mapping, and may build on the default one."""
    experts = [candidate("a", "zebra", priority=1), candidate("b", "zebra", priority=1)]
    default = KeywordScorer(experts)
    seen: list[tuple[str, str, Tags]] = []

    def scorer(prompt: str, expert: Candidate, tags: Tags, /) -> tuple[float, list[str]]:
        seen.append((prompt, expert.name, tags))
        score, reasons = default(prompt, expert, tags)
        return (score + 1, [*reasons, "favourite"]) if expert.name == "b" else (score, list(reasons))

    routes = rank("zebra", experts, scorer=scorer, tags=["k=v", "w"])
    assert ["b", "a"] == [route.name for route in routes]
    assert ('keyword "zebra" +0.75', "priority 1 x1.000", "favourite") == routes[0].reasons
    assert [("zebra", "a", {"k": ("v",), "": ("w",)}), ("zebra", "b", {"k": ("v",), "": ("w",)})] == seen


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_without_order(score: float) -> None:
    """A score that cannot be ranked is an error that names the expert."""
    with pytest.raises(
        ValueError, match=f"the scorer gave {score} for expert expert-a; give a finite number"
    ):
        rank("x", [candidate("expert-a")], scorer=lambda *_: (score, ()))


def test_unknown_candidate() -> None:
    """The default scorer also scores a candidate that it was not made with."""
    expert = candidate("a", "zebra", priority=1)
    assert (1.0, ('keyword "zebra" +1.00', "priority 1 x1.000")) == KeywordScorer([])("zebra", expert, {})


@given(st.text(max_size=200), st.lists(st.text(max_size=10), max_size=5), st.randoms())
def test_any_prompt(prompt: str, keywords: list[str], random: object) -> None:
    """Any prompt and keywords are ranked, always in the same way, whatever the order of the candidates."""
    experts = [candidate("new", *keywords, exclude=tuple(keywords[:1])), *WRITTEN]
    first = rank(prompt, experts, include_unfit=True)
    random.shuffle(experts)  # type: ignore[attr-defined]
    assert first == rank(prompt, experts, include_unfit=True)
    assert len(experts) == len(first)


def test_threads() -> None:
    """One router serves many threads, each with the answers that it would give alone."""
    router = Router([*OWN, *WRITTEN])
    prompts = ["Fix this JSON", "an SQL table", "a Cypher graph", "Kibana", "TypeScript"] * 40
    expected = [router.rank(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert expected == list(pool.map(router.rank, prompts))


def test_time() -> None:
    """Fifty experts are ranked on a prompt of 300 words within milliseconds."""
    experts = [*OWN, *WRITTEN]
    router = Router(
        Candidate(f"expert-{i}", experts[i % 8].routing, experts[i % 8].capabilities) for i in range(50)
    )
    words = (
        "Show the total of each invoice in this SQL table, group by city; JSON documents in Kibana too. " * 17
    )
    times = []
    for number in range(20):
        start = time.perf_counter()
        router.rank(f"{words} {number}")
        times.append(time.perf_counter() - start)
    # It takes one to two milliseconds; the bound leaves room for a busy machine.
    assert 0.02 > min(times)
