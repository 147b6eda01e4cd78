"""Where a keyword is found in a prompt, and that looking takes linear time."""

from __future__ import annotations

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_samples import candidate

from hivellm_ort.routing import Router
from hivellm_ort.routing.words import MAX_PHRASE_WORDS, Phrase, PromptWords


def found(keyword: str, prompt: str) -> bool:
    """Whether a keyword is in a prompt."""
    phrase = Phrase.of(keyword)
    return phrase is not None and phrase.text in PromptWords(prompt).runs(len(phrase.words))


@pytest.mark.parametrize(
    ("keyword", "prompt"),
    [
        ("json", "Fix this JSON: {}"),
        ("json", '("json")'),
        ("json:", "json: x"),
        ("group by", "GROUP \t\n BY city"),
        ("GROUP  BY", "group by city"),
        ("straße", "In der STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("café", unicodedata.normalize("NFD", "CAFÉ au lait")),
        (unicodedata.normalize("NFD", "café"), "café"),
        ("json", "\uff2a\uff33\uff2f\uff2e"),
        ("c++", "in C++, please"),
        ("c++", "C++17"),
        ("c#", "C#?"),
        ("#include", "#include <x>"),
        ("{", "{}"),
        ("es|ql", "ES|QL"),
        ("->", "a->b"),
        ("数据库", "请用数据库查询"),
        ("sql", "用SQL查询"),
        ("ฐานข้อมูล", "ค้นหาในฐานข้อมูลนี้"),
        ("हिन्दी", "यह हिन्दी है"),
        ("don't", "don't do it"),
    ],
)
def test_found(keyword: str, prompt: str) -> None:
    """Case, Unicode form, white space and punctuation around the words do not matter."""
    assert found(keyword, prompt)


@pytest.mark.parametrize(
    ("keyword", "prompt"),
    [
        ("join", "a joint"),
        ("join", "rejoin"),
        ("join", "join_queries"),
        ("group by", "group, by"),
        ("group by", "groupby"),
        ("group by", "by group"),
        ("c", "C++"),
        ("c", "C#"),
        ("c++", "c"),
        ("cafe", "café"),
        ("हिन्द", "हिन्दी"),
        ("es|ql", "es ql"),
        ("", ""),
        (" ", " "),
        ("a " * (MAX_PHRASE_WORDS + 1), "a " * 100),
    ],
)
def test_not_found(keyword: str, prompt: str) -> None:
    """A keyword inside a word, in another order or with something between is not there."""
    assert not found(keyword, prompt)


def test_longest_phrase() -> None:
    """A phrase of the most words that are allowed is found."""
    assert found("a " * MAX_PHRASE_WORDS, "b " + "a " * MAX_PHRASE_WORDS)


@given(st.text(), st.text(), st.text())
def test_any_phrase(before: str, phrase: str, after: str) -> None:
    """A phrase of any characters is found between any two texts that are set apart from it."""
    cut = Phrase.of(phrase)
    assert cut is None or found(phrase, f"{before} {phrase} {after}")


@given(st.lists(st.sampled_from(["a", "b", "ab", "a b"])), st.sampled_from(["a", "a b", "b a b"]))
def test_like_a_pattern(words: list[str], phrase: str) -> None:
    """Over plain words the answer is that of a regular expression with word boundaries."""
    prompt = " ".join(words)
    assert bool(re.search(rf"\b{phrase}\b", prompt)) == found(phrase, prompt)


# Each grew with the square of its length in some form of this code, or would in regular expressions.
HOSTILE = [
    "a ",
    "a\u0315\u0300",
    "\u0315\u0300",
    "((((",
    "c++",
    "\u202e",
    "a\u0301 ",
    "数",
    "\ud800",
    "_",
    "\t",
]


@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
def test_linear_time(piece: str) -> None:
    """Prompts of 100,000 characters take a moment, whatever they and the keywords hold."""
    keywords = [piece * count for count in range(1, 17)] + ["a " * 15 + "b", "(a+)+$", ".*" * 50]
    router = Router([candidate(f"expert-{i}", *keywords, exclude=tuple(keywords)) for i in range(3)])
    start = time.perf_counter()
    router.rank(piece * (100_000 // len(piece)))
    assert 5 > time.perf_counter() - start


def test_many_hostile_keywords() -> None:
    """A manifest of 20,000 keywords and a prompt that holds them all take a moment, and win little."""
    keywords = [f"zq{i}" for i in range(20_000)]
    start = time.perf_counter()
    (route,) = Router([candidate("expert-all", *keywords, priority=1)]).rank(" ".join(keywords))
    assert (8.0, True) == (route.score, 10 > time.perf_counter() - start)
