"""What counts how much, and the reasons that say so."""

from __future__ import annotations

from itertools import pairwise

import pytest
from routing_samples import candidate

from hivellm_ort.routing import Candidate, KeywordScorer, Route, rank
from hivellm_ort.routing.scorer import NEEDED


def only(prompt: str, expert: Candidate, **options: object) -> Route:
    """The route of a single expert, fit or not."""
    (route,) = rank(prompt, [expert], include_unfit=True, **options)  # type: ignore[arg-type]
    return route


def test_reasons() -> None:
    """Reasons show each weight, and their sum times the priority's factor is the score."""
    expert = candidate(
        "expert-sql", "sql", "group by", "list", "table", exclude=("mongodb",), priority=0.8,
        capabilities=("task:text2sql",),
    )  # fmt: skip
    assert Route(
        "expert-sql",
        round((1.5 + 1 + 0.75 + 0.6 + 0.2 - 2) * 0.9, 4),
        (
            'keyword "group by" +1.50',
            'keyword "sql" +1.00',
            "capability task:text2sql +0.75",
            'keyword "table" (ambiguous) +0.60',
            'keyword "list" (everyday word) +0.20',
            'excluded by "mongodb" -2.00',
            "priority 0.8 x0.900",
        ),
    ) == only("List the table, text2sql: SQL, group by x, not MongoDB.", expert)


def test_kinds_of_keywords() -> None:
    """A phrase counts more than a term, a term more than an ambiguous word, and everyday words least."""
    expert = candidate(
        "expert-a", "foreign key", "json:", "table", "db", "->", "c#", "find all", "list:", "r"
    )
    weights = [
        KeywordScorer([expert])(text, expert, {})[1][0].rpartition(" ")[2]
        for text in ("foreign key", "json:", "c#", "table", "db", "->", "find all", "list:", "r")
    ]
    assert ["+1.50", "+1.00", "+1.00", "+0.60", "+0.60", "+0.60", "+0.30", "+0.20", "+0.20"] == weights


@pytest.mark.parametrize(
    ("prompt", "fits"),
    [
        ("get list find show from", False),
        ("table", False),
        ("show table", True),
        ("postgres", True),
        ("", False),
    ],
)
def test_needed(prompt: str, fits: bool) -> None:
    """Everyday words alone never fit; one ambiguous word needs another word beside it."""
    expert = candidate("expert-a", "get", "list", "find", "show", "from", "table", "postgres")
    route = only(prompt, expert)
    assert (fits, fits) == (route.fits, route.score > 0)


def test_too_little_says_so() -> None:
    """An expert that falls short scores 0, one that is spoken against less, and both say how far off they are."""
    expert = candidate("expert-a", "show", exclude=("json",))
    assert Route(
        "expert-a", 0.0, ('keyword "show" (everyday word) +0.20', "0.20 in all, 0.70 needed")
    ) == only("show", expert)
    assert -1.8 == only("show json", expert).score
    assert Route("expert-a", 0.0, ()) == only("nothing here", expert)


def test_inside_a_longer_keyword() -> None:
    """A keyword inside a longer one that matched does not count again."""
    expert = candidate("expert-json", "json", "invalid json", priority=1)
    assert (1.5, 1.0) == (only("invalid json", expert).score, only("json", expert).score)


def test_same_word_twice() -> None:
    """A word counts once: repeated in the prompt, or listed as keyword, capability and term of the hint."""
    expert = candidate(
        "expert-sql",
        "sql",
        "SQL",
        priority=1,
        hint="database=sql",
        capabilities=("database:sql", "query:sql"),
    )
    assert Route("expert-sql", 1.0, ('keyword "sql" +1.00', "priority 1 x1.000")) == only(
        "sql SQL sql", expert
    )


def test_most_clues() -> None:
    """Eight clues count, the weightiest."""
    terms = [f"zq{i}" for i in range(20)]
    expert = candidate("expert-a", "table", *terms, priority=1)
    assert 8.0 == only(" ".join(["table", *terms]), expert).score


def test_exclude_words_are_no_veto() -> None:
    """One excluded word undoes a term, but not a prompt full of evidence."""
    expert = candidate("expert-sql", "sql", "postgres", "group by", exclude=("json", "what is"))
    assert not only("SQL or JSON", expert).fits
    assert only("Postgres SQL that reads the json column, group by city", expert).fits
    assert only("What is the SQL for this? group by city", expert).fits
    assert 'excluded by "what is" (everyday words) -0.60' in only("What is SQL?", expert).reasons


def test_shared_keywords() -> None:
    """A keyword that every candidate has counts a quarter less than one that a single candidate has."""
    experts = [
        candidate(f"expert-{word}", "schema2", word, priority=1) for word in ("alpha", "beta", "gamma")
    ]
    routes = rank("schema2 beta", experts)
    assert [("expert-beta", 1.75), ("expert-alpha", 0.75), ("expert-gamma", 0.75)] == [
        (route.name, route.score) for route in routes
    ]
    both = rank("schema2", [*experts, candidate("expert-other", "other")])
    assert ['keyword "schema2" +0.83'] * 3 == [route.reasons[0] for route in both]


def test_priority() -> None:
    """Priority scales from a half to one; 0.5 stands in for none, and misfits are not lifted by a low one."""
    scores = [
        only("postgres", candidate("expert-a", "postgres", priority=p)).score for p in (0, 0.5, None, 0.8, 1)
    ]
    assert [0.5, 0.75, 0.75, 0.9, 1.0] == scores
    against = [only("json", candidate("expert-a", exclude=("json",), priority=p)).score for p in (0, 1)]
    assert [-2.0, -2.0] == against


@pytest.mark.parametrize(
    ("capability", "prompt", "reason"),
    [
        ("feature:window_functions", "Use Window functions", "capability feature:window_functions +1.12"),
        ("feature:type-guards", "type guards", "capability feature:type-guards +1.12"),
        ("language:typescript", "TypeScript!", "capability language:typescript +0.75"),
        ("grammar", "check the grammar", "capability grammar +0.75"),
        ("language:en", "en verano", "capability language:en (everyday word) +0.15"),
    ],
)
def test_capabilities(capability: str, prompt: str, reason: str) -> None:
    """The value of a capability counts as words, also of an expert without a routing section."""
    assert reason == only(prompt, Candidate("expert-a", capabilities=(capability,))).reasons[0]


def test_hint_without_tags() -> None:
    """Without tags the terms of a hint are looked for in the prompt, negated ones against."""
    expert = candidate("expert-a", hint="database=postgres AND NOT task=chart AND size>3", priority=1)
    assert Route("expert-a", 0.75, ("hint: database=postgres +0.75", "priority 1 x1.000")) == only(
        "a postgres of size 3", expert
    )
    assert "hint: not task=chart (ambiguous) -1.20" in only("postgres chart", expert).reasons


@pytest.mark.parametrize("tags", [{"database": "sql"}, ["database=SQL"], ["database:sql"], "database=sql"])
def test_hint_with_tags(tags: object) -> None:
    """Tags of either form make a hint hold, whatever the prompt says."""
    expert = candidate("expert-a", hint="database=sql OR task=text2sql", priority=1)
    assert Route("expert-a", 2.0, ("hint: database=sql +2.00", "priority 1 x1.000")) == only(
        "anything", expert, tags=tags
    )


def test_tags_replace_guesses() -> None:
    """With tags, a hint that does not hold says nothing, although its word is in the prompt."""
    expert = candidate("expert-a", hint="database=postgres")
    assert only("postgres", expert, tags={}).fits
    assert Route("expert-a", 0.0, ()) == only("postgres", expert, tags={"database": "mongodb"})


def test_more_tags() -> None:
    """Tags hold numbers, several values, several texts of one key, and bare words."""
    expert = candidate("expert-a", hint="formality>0.7 AND lang=en AND poetry AND NOT domain=slang")
    assert only("x", expert, tags={"formality": 0.9, "lang": ["de", "en"], "kind": "poetry"}).fits
    assert only("x", expert, tags=["formality=0.9", "lang=de", "lang=en", " poetry "]).fits
    assert not only("x", expert, tags=["formality=0.9", "lang=en", "poetry", "domain=slang"]).fits
    quiet = candidate("expert-b", hint="NOT domain=slang")
    assert "hint: nothing that it excludes +2.00" == only("x", quiet, tags=["lang=en"]).reasons[0]


def test_hostile_texts_in_reasons() -> None:
    """Reasons are short and visible whatever the manifest holds."""
    route = only("a \x1b[31m b " + "z" * 500, candidate("expert-a", "\x1b[31m", "z" * 500, priority=1))
    assert (r'keyword "\x1b[31m" +1.00', f'keyword "{"z" * 59}…" +1.00') == route.reasons[:2]


def test_more_evidence_never_hurts() -> None:
    """A prompt with one more of the keywords never scores less."""
    words = ["show", "list", "how many", "table", "postgres", "group by", "where", "foreign key"]
    expert = candidate("expert-a", *words)
    scores = [only(" , ".join(words[:count]), expert).score for count in range(len(words) + 1)]
    assert all(before <= after for before, after in pairwise(scores))
    assert NEEDED > 0.4
