"""Grammars made to take long or much memory end soon, with a result or a GrammarError."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
from matching import accepts, matcher

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.lark import to_lark
from hivellm_ort.grammar.limits import GrammarLimits
from hivellm_ort.grammar.lint import warnings_of
from hivellm_ort.grammar.normalise import normalise

SECONDS = 60  # generous: under a few seconds each on an idle machine
MEMORY = 600 << 20


def chain(length: int, body: str) -> str:
    """Return a grammar in which each rule is made from the next one."""
    rules = [f"a{number} ::= {body.format(f'a{number + 1}')}" for number in range(length)]
    return "\n".join(["root ::= a0", *rules, f'a{length} ::= "x"'])


HOSTILE = {
    "deep groups": f'root ::= {"(" * 200}"a"{")" * 200}',
    "deep groups with loops": f"""root ::= {'("a" ' * 200}"a"{' | "b")*' * 200}""",
    "deep recursive groups": f"""root ::= "c" | {'("a" root ' * 200}"a"{' | "b")*' * 200}""",
    "deeper groups": f'root ::= {"(" * 100_000}"a"{")" * 100_000}',
    "stacked repetitions": f'root ::= "a"{"?*+" * 60}',
    "more stacked repetitions": f'root ::= "a"{"?" * 500_000}',
    "exponential length": chain(100, "{0} {0}"),
    "exponential repetition": chain(100, "{0}{{300}}"),
    "long chain": chain(9_000, '"(" {0} ")"'),
    "long recursive chain": chain(3_000, '"(" {0} ")" | root "y"'),
    "repetition": 'root ::= "a"{2000}',
    "nested repetition": 'root ::= (("a"{2000}){2000}){2000}',
    "nested optional repetition": 'root ::= (([a-z]{0,30} | "x" root){0,30} "b"){0,30}',
    "nested repetition of classes": "root ::= ([a-z]{1,300}){1,300}",
    "repetition of nothing": 'root ::= (""{2000}){2000} "a"',
    "many alternatives": "root ::= " + " | ".join(f'"k{number}"' for number in range(20_000)),
    "empty alternatives": 'root ::= "a"' + "|" * 500_000,
    "many rules": "\n".join(f'r{number} ::= "k{number}"' for number in range(20_000)),
    "giant literal": f'root ::= "{"a" * 90_000}"',
    "giant text": "# " + "a" * 5_000_000,
    "giant class": "root ::= [" + "".join(f"\\u{0x1000 + 2 * number:04x}" for number in range(20_000)) + "]*",
    "giant name": f"root ::= {'a' * 900_000}",
    "ambiguous": 'root ::= root root | "a" | "" | root*',
    "unit cycle": 'root ::= a | "x"\na ::= b\nb ::= a | root | "y"',
    "many optional items": "root ::= " + " ".join(f'"k{number}"?' for number in range(2_000)),
    "overlapping loops": "root ::= "
    + " | ".join(f'[a-z]{{{number}}} "b" root' for number in range(1, 120))
    + ' | ""',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    """The grammar is read, warned of, rewritten, printed and compiled, or refused, within bounds."""
    gc.collect()
    start = time.perf_counter()
    try:
        rules = parse_gbnf(HOSTILE[name])
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
        normalise(parse_gbnf(HOSTILE[name]))
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
