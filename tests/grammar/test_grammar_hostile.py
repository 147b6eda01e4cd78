"""Grammars made to take long or much memory end soon, with a result or a GrammarError."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
from hostile_grammars import GBNF
from matching import accepts, matcher

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.lark import to_lark
from hivellm_ort.grammar.limits import GrammarLimits
from hivellm_ort.grammar.lint import warnings_of
from hivellm_ort.grammar.normalise import normalise

SECONDS = 60  # generous: under a few seconds each on an idle machine
MEMORY = 600 << 20


@pytest.mark.parametrize("name", GBNF)
def test_hostile(name: str) -> None:
    """The grammar is read, warned of, rewritten, printed and compiled, or refused, within bounds."""
    gc.collect()
    start = time.perf_counter()
    try:
        rules = parse_gbnf(GBNF[name])
        warnings_of(rules)
        for exact in (True, False):
            compiled = matcher(to_lark(normalise(rules), exact=exact))
            accepts(compiled, "a")
    except GrammarError as error:
        assert len(str(error)) < 1_000  # noqa: PT017
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize(
    "name", ["empty alternatives", "nested repetition", "many alternatives", "more stacked repetitions"]
)
def test_memory(name: str) -> None:
    """Reading takes a bounded multiple of the text."""
    tracemalloc.start()
    try:
        normalise(parse_gbnf(GBNF[name]))
    except GrammarError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


@pytest.mark.parametrize("depth", [1_000, 20_000])
def test_deeper_limits_do_not_recurse(depth: int) -> None:
    """With larger limits nothing runs out of stack either."""
    limits = GrammarLimits(max_depth=depth)
    rules = parse_gbnf(f"""root ::= {'("a" ' * depth}root?{' | "b")*' * depth}""", limits=limits)
    warnings_of(rules)
    with pytest.raises(GrammarError, match="in a chain of more than 200"):
        to_lark(normalise(rules))
