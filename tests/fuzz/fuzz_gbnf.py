"""GBNF: a grammar compiles and makes tokens, or is refused with a GrammarError."""

from __future__ import annotations

import random

from attempts import refusing
from hostile_grammars import GBNF, GRAMMARS
from matching import SAMPLES
from mutations import bytes_changed, mutated, words_changed
from walking import allowed, compiled

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import check_grammar

WORDS = [
    "root ::= ", "\n", "::=", "|", "(", ")", "[a-z]", "[^\\n]", "[", "]", "^", "-", '"', '"a"', '""', "*", "+", "?",
    "{2}", "{0,}", "{,3}", "{1,2000}", "{99999999999}", "{", "}", "\\", "\\x41", "\\u00e9", "\\U0010FFFF", "\\ud800",
    "\\n", "#", "root", "a", "b", "a ::= ", ".", "<think>", "<[1]>", "!<[1]>", "!", "é", "\0", "\ufeff", "\r",
    "[\\x00-\\U0010ffff]", "[z-a]", "[]", "[^]", "root ::= root | ", "((((((((", "))))))))",
]  # fmt: skip
_WAYS = (words_changed(WORDS), words_changed(WORDS), bytes_changed)
_LARGEST = 4096  # bytes of a start; larger ones, and those that take seconds, are tested by themselves
_SLOW = ("deep", "exponential")


def samples() -> list[bytes]:
    """The published samples, and everything hostile that is small."""
    others = {name: grammar.text for name, grammar in GRAMMARS.items() if grammar.kind == "gbnf"}
    hostile = [text.encode() for name, text in {**others, **GBNF}.items() if not name.startswith(_SLOW)]
    return [*(path.read_bytes() for path in SAMPLES), *(data for data in hostile if len(data) <= _LARGEST)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another grammar."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Check it for no model, compile it for a vocabulary, and take some tokens that it allows."""
    text = data.decode("utf-8", "surrogateescape")
    with refusing(GrammarError):
        check_grammar(Grammar.gbnf(text))
    with refusing(GrammarError):
        constraint = compiled(Grammar.gbnf(text))
        rng = random.Random(0)
        for _ in range(8):
            choices = allowed(constraint)
            assert choices or constraint.finished
            if constraint.finished:
                break
            constraint.forced_tokens()
            constraint.accept(rng.choice(choices))
