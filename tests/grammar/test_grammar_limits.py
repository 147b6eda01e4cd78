"""Limits: each is an error that names it, and grammars made to exhaust the parser end in bounded time."""

from __future__ import annotations

import random
import time

import pytest
from hostile_grammars import AMBIGUOUS, GRAMMARS
from walking import allowed, answer, compiled, text_of, token

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import GrammarLimits

BOUNDED = 10  # seconds, on a slow machine


def after(grammar: Grammar, text: str, **limits: int) -> None:
    """Compile a grammar, and accept a text, asking for a mask before each token."""
    constraint = compiled(grammar, limits=GrammarLimits(**limits))
    for char in text:
        allowed(constraint)
        constraint.forced_tokens()
        constraint.accept(token(char))
    allowed(constraint)


@pytest.mark.parametrize(
    ("grammar", "text", "limits"),
    [
        (Grammar.regex("a" * 100), "", {"max_bytes": 99}),
        (Grammar.choice(["é" * 50]), "", {"max_bytes": 99}),
        (Grammar.json_schema({"const": "a" * 100}), "", {"max_bytes": 99}),
        (Grammar.gbnf('root ::= "a"\na ::= "b"\nb ::= "c"'), "", {"max_rules": 2}),
        (Grammar.gbnf('root ::= (((("a"))))'), "", {"max_depth": 3}),
        (Grammar.gbnf('root ::= "a"{101}'), "", {"max_repetition": 100}),
        (Grammar.lark('start: "a" "b" "c" "d"{100}'), "", {"max_grammar_size": 10}),
        (AMBIGUOUS, "a" * 9, {"max_items_in_row": 20}),
        (AMBIGUOUS, "a" * 20, {"step_max_items": 100}),
        (Grammar.regex("(a|b)*a(a|b){12}"), "ab", {"step_lexer_fuel": 50}),
        (Grammar.lark('start: "a"{100000}'), "a", {}),
        (Grammar.regex("((a{100}){100}){100}"), "a", {}),
    ],
)
def test_a_limit_is_an_error_that_names_it(grammar: Grammar, text: str, limits: dict[str, int]) -> None:
    """The message says which limit; no mask hides that the parser gave up."""
    begin = time.monotonic()
    with pytest.raises(GrammarError) as caught:
        after(grammar, text, **limits)
    for name in limits:
        assert name in str(caught.value)
    assert time.monotonic() - begin < BOUNDED


def test_an_answer_stays_stopped() -> None:
    """Once the parser gave up every question is an error, and nothing ends the answer as if it were complete."""
    constraint = compiled(AMBIGUOUS, limits=GrammarLimits(max_items_in_row=20))
    for _ in range(3):
        constraint.accept(token("a"))
    with pytest.raises(GrammarError, match="max_items_in_row"):
        constraint.accept(token("a"))
    for ask in (
        lambda: allowed(constraint),
        lambda: constraint.accept(token("a")),
        lambda: constraint.forced_tokens(),
        lambda: constraint.validate_tokens([token("a")]),
        lambda: constraint.rollback(1),
    ):
        with pytest.raises(GrammarError, match="max_items_in_row"):
            ask()
    assert (False, False) == (constraint.complete, constraint.finished)


def test_a_stop_in_one_answer_leaves_the_others() -> None:
    """The next answer under the same grammar begins anew."""
    limits = GrammarLimits(max_items_in_row=20)
    with pytest.raises(GrammarError):
        after(AMBIGUOUS, "a" * 9, max_items_in_row=20)
    assert token("a") in allowed(compiled(AMBIGUOUS, limits=limits))


def test_answers_before_use_nothing_up() -> None:
    """How far an answer gets under a limit does not depend on those before it."""
    many_states = Grammar.regex("(a|b)*a(a|b){12}")
    for seed in range(15):
        rng = random.Random(seed)
        constraint = compiled(many_states, limits=GrammarLimits(max_lexer_states=1000))
        for _ in range(120):
            constraint.accept(token(rng.choice("ab")))
            allowed(constraint)


@pytest.mark.parametrize("name", GRAMMARS)
def test_hostile_grammars_end_in_bounded_time(name: str) -> None:
    """Each either makes tokens or is an error: of the grammar, at once or in the middle of an answer."""
    begin, rng = time.monotonic(), random.Random(0)
    try:
        constraint = compiled(GRAMMARS[name])
        for _ in range(30):
            choices = allowed(constraint)
            if constraint.finished:
                break
            constraint.accept(rng.choice(choices))
    except GrammarError:
        pass
    assert time.monotonic() - begin < BOUNDED


def test_errors_do_not_repeat_the_grammar() -> None:
    """Neither a long grammar nor the answer so far is written into the message."""
    with pytest.raises(GrammarError) as caught:
        compiled(Grammar.lark("start: " + "a " * 10_000 + "\x1b[31m"))
    assert 600 > len(str(caught.value))
    assert "\x1b" not in str(caught.value)


def test_ambiguity_within_the_limits_is_no_error() -> None:
    """Answers under an ambiguous grammar are answers."""
    assert set("a") == set(text_of(answer(compiled(AMBIGUOUS), random.Random(1), length=8)))
