"""Authors are warned of what they seldom mean."""

from __future__ import annotations

import pytest
from matching import REAL, SAMPLES, text_of
from support.earley import read

from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.lint import warnings_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('root ::= "a" [b-c]+', []),
        (
            'root ::= x\nx ::= x "a" | "b"',
            ["line 2: rule 'x' can begin with itself ('x' -> 'x'); llama.cpp refuses such left recursion."],
        ),
        (
            'root ::= "(" x\nx ::= y | "b"\ny ::= w? x "c"\nw ::= "w"',
            [
                "line 2: rule 'x' can begin with itself ('x' -> 'y' -> 'x'); llama.cpp refuses such left recursion.",
                "line 3: rule 'y' can begin with itself ('y' -> 'x' -> 'y'); llama.cpp refuses such left recursion.",
            ],
        ),
        ('root ::= "a" root | "b"', []),
        (
            'root ::= "a" ws "b"\nws ::= s*\ns ::= [ \\t\\r\\n]',
            [
                "line 2: rule 'ws' is blanks that may be left out, so that words around it can run into each other; "
                "use `+` where a blank is needed."
            ],
        ),
        ('root ::= "a" ws "b" no\nws ::= [ \\t\\n]+\nno ::= [ _]*', []),
        (
            'root ::= "a"\n\nx ::= y\ny ::= "b"',
            [f"line {n}: rule '{r}' is never used from 'root'." for n, r in ((3, "x"), (4, "y"))],
        ),
        (
            'root ::= "a" x\nx ::= "" | y*\ny ::= ""',
            [
                "line 2: rule 'x' matches only the empty text.",
                "line 3: rule 'y' matches only the empty text.",
            ],
        ),
        (
            'root ::= "a" | ("b" | "c" x? | "b" | "c" x?) | x | "a"\nx ::= "x"',
            [
                "line 1: rule 'root' has the same alternative twice, as number 1 and number 3.",
                "line 1: rule 'root' has the same alternative twice, as number 2 and number 4.",
                "line 1: rule 'root' has the same alternative twice, as number 1 and number 4.",
            ],
        ),
    ],
)
def test_warnings(text: str, expected: list[str]) -> None:
    """Each finding is one sentence with the line of its rule."""
    assert expected == warnings_of(parse_gbnf(text))


@pytest.mark.parametrize("path", SAMPLES + sorted(REAL.glob("*.gbnf")), ids=lambda path: path.stem)
def test_left_recursion_and_unreachable_rules(path: object) -> None:
    """The findings are those of an independent reader."""
    gbnf = text_of(path)  # type: ignore[arg-type]
    found = warnings_of(parse_gbnf(gbnf))
    grammar = read(gbnf, leading_bars=True)
    recursive = sorted(text.split("'")[1] for text in found if "begin with itself" in text)
    unused = sorted(text.split("'")[1] for text in found if "never used" in text)
    assert grammar.left_recursive() == recursive
    assert [name for name in grammar.unreachable() if "#" not in name] == unused
