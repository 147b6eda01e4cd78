"""What the decode loop is told: which tokens may come next, which must, and when the answer is complete."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from walking import END, allowed, answer, compiled, small_tokenizer, text_of, token, width

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.matcher import fill_masks

ANYTHING = Grammar.regex("(?s:.*)")
AB = Grammar.regex("ab?")


def take(constraint: Constraint, text: str) -> None:
    """Accept a text, a token for each character."""
    for char in text:
        constraint.accept(token(char))


def test_forbidden_tokens_get_minus_infinity() -> None:
    """Allowed tokens keep their logits to the bit, and the logits that were given stay as they are."""
    logits = np.random.default_rng(0).standard_normal(width(), np.float32)
    before = logits.copy()
    scores = compiled(AB).apply(logits)
    assert np.array_equal(before, logits)
    assert [token("a")] == np.flatnonzero(scores > -np.inf).tolist()
    assert before[token("a")] == scores[token("a")]
    assert (np.float32, (width(),)) == (scores.dtype, scores.shape)


def test_extreme_logits_pass() -> None:
    """Infinite logits of allowed tokens stay, and of others become -inf; NaN is not hidden."""
    logits = np.full(width(), np.inf, np.float32)
    assert [token("a")] == np.flatnonzero(compiled(AB).apply(logits) == np.inf).tolist()
    assert np.isnan(compiled(AB).apply(np.full(width(), np.nan, np.float32))).all()


@pytest.mark.parametrize("seed", range(20))
def test_masks_of_all_densities(seed: int) -> None:
    """The masked logits are what numpy's where gives for the tokens whose text may come next."""
    rng = np.random.default_rng(seed)
    tokenizer = small_tokenizer()
    texts = {tokenizer.decode([i]): i for i in range(width()) if tokenizer.id_to_token(i)}
    plain = {
        text: i for text, i in texts.items() if "\N{REPLACEMENT CHARACTER}" not in text and "<" not in text
    }
    chosen = rng.choice(sorted(plain), rng.integers(1, len(plain)), replace=False)
    constraint = compiled(Grammar.choice([*map(str, chosen)]))
    logits = rng.standard_normal(width(), np.float32)
    may = np.zeros(width(), bool)
    may[[plain[text] for text in plain if any(one.startswith(text) for one in chosen) and text]] = True
    if constraint.complete:
        may[END] = True
    scores = constraint.apply(logits)
    # Tokens of a part of a character begin some choices too.
    assert set(np.flatnonzero(may)) <= set(np.flatnonzero(scores > -np.inf))
    decoded = [text_of([int(i)]) for i in np.flatnonzero((scores > -np.inf) & ~may)]
    assert all("\N{REPLACEMENT CHARACTER}" in text for text in decoded)
    assert np.array_equal(logits[may], scores[may])


def test_an_end_token_is_allowed_exactly_when_complete() -> None:
    """Before, and in the middle, it is forbidden; the other end tokens follow it."""
    other = token("<|endoftext|>")
    constraint = compiled(Grammar.regex("a(bb)?"), end_token_ids=[END, other])
    seen = []
    for char in "abb":
        seen.append((constraint.complete, END in allowed(constraint), other in allowed(constraint)))
        take(constraint, char)
    seen.append((constraint.complete, END in allowed(constraint), other in allowed(constraint)))
    assert [(False,) * 3, (True,) * 3, (False,) * 3, (True,) * 3] == seen


def test_without_end_tokens_none_is_allowed() -> None:
    """The end token that llguidance needs is not the model's."""
    constraint = compiled(AB, end_token_ids=[])
    take(constraint, "a")
    assert [token("b")] == allowed(constraint)
    take(constraint, "b")
    assert (True, True) == (constraint.complete, constraint.finished)


def test_an_end_token_of_text_ends_only() -> None:
    """A token of text that ends answers is forbidden where the grammar asks for its text."""
    constraint = compiled(Grammar.regex("a;+b"), end_token_ids=[token(";")])
    take(constraint, "a")
    with pytest.raises(GrammarError, match="no token may come next"):
        constraint.apply(np.zeros(width(), np.float32))


def test_a_closing_token_is_text_too() -> None:
    """It is allowed where the grammar allows it, and when the grammar is complete."""
    constraint = compiled(Grammar.regex("(a;)+b"), closing_token_ids=[token(";")])
    take(constraint, "a")
    assert [token(";")] == allowed(constraint)
    take(constraint, ";")
    assert token(";") not in allowed(constraint)
    take(constraint, "b")
    assert sorted([token(";"), END]) == allowed(constraint)


def test_finished_is_complete_with_nothing_to_follow() -> None:
    """Complete alone is not finished, and finished leaves the end tokens."""
    constraint = compiled(AB)
    states = [(constraint.complete, constraint.finished)]
    for char in "ab":
        take(constraint, char)
        states.append((constraint.complete, constraint.finished))
    assert [(False, False), (True, False), (True, True)] == states
    assert [END] == allowed(constraint)


def test_a_token_that_is_not_allowed_is_refused() -> None:
    """The error names the grammar, and the answer can go on as if nothing had been."""
    constraint = compiled(Grammar.regex("ab", source="my.regex"))
    take(constraint, "a")
    for wrong in (token("a"), END, width() - 1):
        with pytest.raises(GrammarError, match=r"^my\.regex: the grammar does not allow"):
            constraint.accept(wrong)
    assert [token("b")] == allowed(constraint)
    take(constraint, "b")
    assert constraint.finished


def test_forced_tokens_change_nothing() -> None:
    """They may be asked for again, and accepted one by one."""
    constraint = compiled(Grammar.choice(["system user", "system assistant"]))
    forced = constraint.forced_tokens()
    assert (True, forced) == (len(forced) > 0, constraint.forced_tokens())
    assert "system user".startswith(text_of(forced))
    for one in forced:
        assert one in allowed(constraint)
        constraint.accept(one)


def test_nothing_is_forced_where_the_answer_may_end() -> None:
    """A complete answer that can go on in one way alone forces nothing."""
    constraint = compiled(Grammar.regex("a(bcd)?"))
    assert [token("a")] == constraint.forced_tokens()[:1]
    take(constraint, "a")
    assert [] == constraint.forced_tokens()


def test_fits_counts_and_changes_nothing() -> None:
    """The count ends at the first token that cannot come, and before an end token."""
    constraint = compiled(Grammar.regex("ab+"))
    a, b = token("a"), token("b")
    assert (0, 1, 3, 3, 2) == tuple(
        constraint.validate_tokens(guess) for guess in ([], [a], [a, b, b], [a, b, b, a, b], [a, b, END, b])
    )
    assert 0 == constraint.validate_tokens([b])
    assert a in allowed(constraint)


def test_rollback_returns_to_the_state_before() -> None:
    """Masks, completeness and forced tokens are those of that time, even after the end."""
    constraint = compiled(Grammar.regex("ab{3}"))
    states = []
    for char in "abbb":
        states.append((allowed(constraint), constraint.complete, constraint.finished))
        take(constraint, char)
    assert constraint.finished
    for count, state in enumerate(reversed(states), 1):
        assert [END] == allowed(constraint)
        constraint.rollback(count)
        assert state == (allowed(constraint), constraint.complete, constraint.finished)
        take(constraint, "abbb"[4 - count :])
    constraint.rollback(0)
    assert constraint.finished


@pytest.mark.parametrize("count", [-1, 3])
def test_no_more_is_taken_back_than_was_accepted(count: int) -> None:
    """A count outside of it is a mistake of the caller, and changes nothing."""
    constraint = compiled(Grammar.regex("ab"))
    take(constraint, "ab")
    with pytest.raises(ValueError, match="2 tokens were accepted"):
        constraint.rollback(count)
    assert constraint.finished


def test_masks_of_a_batch_are_those_of_its_rows() -> None:
    """Filled together they are the same as one by one, in rows of different grammars."""
    grammars = [AB, ANYTHING, Grammar.choice(["x", "yz"]), Grammar.json_schema(True)] * 3
    alone, together = ([compiled(grammar) for grammar in grammars] for _ in range(2))
    fill_masks(together)
    assert [allowed(one) for one in alone] == [allowed(one) for one in together]


def test_masks_filled_in_advance_follow_the_answer() -> None:
    """A token accepted after that makes a new mask necessary, and only there."""
    rows = [compiled(AB), compiled(ANYTHING)]
    fill_masks(rows)
    take(rows[0], "a")
    fill_masks(rows)
    assert sorted([token("b"), END]) == allowed(rows[0])


class Toy:
    """A constraint that is not llguidance's."""

    complete = finished = False

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Forbid the first token."""
        return np.where(np.arange(logits.size) > 0, logits, np.float32(-np.inf))

    def accept(self, token_id: int) -> None:
        """Take any token."""

    def forced_tokens(self) -> list[int]:
        """Force none."""
        return []

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """Take any guess."""
        return len(token_ids)

    def rollback(self, count: int) -> None:
        """Forget nothing."""


def test_other_constraints_are_left_alone() -> None:
    """Masks are filled for llguidance's alone, and an empty batch is none."""
    rows: list[Constraint] = [Toy(), compiled(AB)]
    fill_masks(rows)
    fill_masks([])
    assert [token("a")] == allowed(rows[1])


def test_special_tokens_are_never_text() -> None:
    """A grammar of any text allows neither special tokens nor tags, nor rows without a token."""
    vocabulary = small_tokenizer().get_vocab_size()
    tags = {token(text) for text in ("<|endoftext|>", "<|im_end|>", "[INST]", "<think>", "</think>")}
    constraint = compiled(ANYTHING)
    may = set(allowed(constraint))
    assert {END} == may & ({*tags, *range(vocabulary, width())})
    texts = {i for i in range(vocabulary) if "\N{REPLACEMENT CHARACTER}" not in text_of([i])}
    assert texts - tags <= may


@pytest.mark.parametrize("text", ["<think>", "a<|im_end|>b", "[INST]", "</think>\n"])
def test_the_text_of_a_special_token_is_spelt_out(text: str) -> None:
    """Forced text that reads like a special token is written in letters, and can be accepted."""
    constraint = compiled(Grammar.choice([text]))
    written = []
    while not constraint.finished:
        (only,) = allowed(constraint)
        written.append(only)
        constraint.accept(only)
    assert text == text_of(written)
    assert not {token(tag) for tag in ("<think>", "</think>", "<|im_end|>", "[INST]")} & set(written)


def test_tokens_are_named() -> None:
    """Lark and GBNF name tokens in angle brackets, and texts that look alike stay texts."""
    for grammar in (
        Grammar.lark(f'start: <think> "<think>" <[{token("a")}]> // <think>'),
        Grammar.gbnf(f'root ::= <think> "<think>" <[{token("a")}]> # <think>'),
    ):
        constraint = compiled(grammar)
        written = answer(constraint, random.Random(0))
        assert [token("<think>"), token("a")] == [written[0], written[-1]]
        assert "<think><think>a" == text_of(written)
        assert 1 == written.count(token("<think>"))


def test_answers_in_several_threads() -> None:
    """Constraints of one grammar in several threads do not disturb each other."""
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 1})
    expected = [answer(compiled(grammar), random.Random(seed)) for seed in range(8)]
    found: dict[int, list[int]] = {}

    def run(seed: int) -> None:
        found[seed] = answer(compiled(grammar), random.Random(seed))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected == [found[seed] for seed in range(8)]


def test_no_answer_is_cut_within_a_character() -> None:
    """Complete answers are valid UTF-8, though tokens hold parts of characters."""
    for seed in range(30):
        tokens = answer(compiled(Grammar.regex(".{3,9}")), random.Random(seed))
        assert 3 <= len(text_of(tokens)) <= 9
        assert "\N{REPLACEMENT CHARACTER}" not in text_of(tokens)
