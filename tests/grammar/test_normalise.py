"""Rules are rewritten into simpler ones of the same language."""

from __future__ import annotations

import pytest

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.normalise import normalise
from hivellm_ort.grammar.syntax import Node, Rules


def normal(text: str) -> dict[str, Node]:
    """Return the normalised rules of a text."""
    return dict(normalise(parse_gbnf(text)).nodes)


# A rule x, and a simpler way to write it; y and z are rules that are not recursive.
SIMPLER = [
    ('"" | y x', "y*"),
    ('y x | ""', "y*"),
    ("y | y x", "y+"),
    ("y x?", "y+"),
    ('"a" | "a" x', '"a"+'),
    ('"ab" z | "ab" z x', '("ab" z)+'),
    ('"" | " " x | "\\n" x', "[ \\n]*"),
    ('y | y "," z x', 'y ("," z y)*'),
    ('y | y "," x', 'y ("," y)*'),
    ("y x | z", "y* z"),
    ("y x | z x | z", "(y | z)* z"),
    ("x y | z", "z y*"),
    ("x y x | z", "z (y z)*"),
    ("x y x | z | y x", "y* z (y y* z)*"),
    ("x x | y", "y+"),
    ("x | y", "y"),
    ('"(" x ")" x | ""', '("(" x ")")*'),
    ('"(" x ")" | y', '"(" x ")" | y'),
    ('"a" ""', '"a"'),
    ('("a" ("b" "c"))', '"abc"'),
    ('"a" | [b-c] | "dd" | "e"', '[a-ce] | "dd"'),
    ('"a" | ("b" | (y | "dd"))', '[a-b] | y | "dd"'),
    ('y | "" | z', "(y | z)?"),
    ('y? | z | ""', "(y | z)?"),
    ("y | z | y", "y | z"),
    ("((y?)*)+", "y*"),
    ("(y+)?", "y*"),
    ("(y+)+", "y+"),
    ("(y?)?", "y?"),
    ("y{1}", "y"),
    ("y{0} z", "z"),
    ("y{0,1}", "y?"),
    ("y* y", "y+"),
    ('""{5}', '""'),
    ("y{2}{3}", "y{2}{3}"),
]


@pytest.mark.parametrize(("written", "simpler"), SIMPLER)
def test_simpler(written: str, simpler: str) -> None:
    """A rule becomes the same as the simpler way to write it."""
    others = '\ny ::= "k" "l" | "m"\nz ::= "n" | "op"'
    assert normal(f"root ::= x z y\nx ::= {simpler}{others}") == normal(
        f"root ::= x z y\nx ::= {written}{others}"
    )


def test_recursion_becomes_repetition() -> None:
    """The rewritten rules do not use themselves."""
    for written, _ in SIMPLER:
        if "(" not in written:
            nodes = normal(f'root ::= x\nx ::= {written}\ny ::= "k" "l" | "m"\nz ::= "n" | "op"')
            assert "Reference(name='x')" not in str(nodes.get("x"))


def test_recursion_through_an_alternative() -> None:
    """A rule that begins with itself through one of its alternatives becomes a repetition too."""
    text = """
    root ::= expression
    expression ::= sum | negation | atom
    sum ::= expression [+-] expression
    negation ::= "not " expression
    atom ::= "a" | "(" expression ")"
    """
    flat = """
    root ::= expression
    expression ::= "not "* atom ([+-] "not "* atom)*
    atom ::= "a" | "(" expression ")"
    """
    assert normal(flat) == normal(text)


def test_unreachable_rules_go() -> None:
    """Rules that `root` does not use are left out, and the others keep their order and their lines."""
    rules = normalise(parse_gbnf('b ::= "b"\n\nroot ::= a b\nd ::= a\na ::= "a"'))
    assert ["b", "root", "a"] == list(rules.nodes)
    assert {"b": 1, "root": 3, "a": 5} == rules.lines


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [
        ('root ::= root "a"', 1, "root"),
        ("root ::= x\nx ::= y\ny ::= x", 1, "root"),
        ('root ::= "a" | x\n\nx ::= "(" x ")"', 3, "x"),
        ('root ::= "a" | x "b"\nx ::= x+ | ("b" x){2}', 2, "x"),
    ],
)
def test_rules_without_end(text: str, line: int, name: str) -> None:
    """A rule that nothing can match is an error with its line."""
    with pytest.raises(GrammarError, match=f"^line {line}, rule '{name}' can never end") as caught:
        normal(text)
    assert line == caught.value.line


def test_unreachable_rules_need_no_end() -> None:
    """A rule without an end does no harm where it is not used."""
    assert ["root"] == list(normal('root ::= "a" x*\nx ::= x "b" | "c"\ny ::= y').keys() - {"x"})


def test_twice_is_once() -> None:
    """Normalised rules are normal."""
    for written, _ in SIMPLER:
        once = normalise(
            parse_gbnf(f'root ::= x z y\nx ::= {written}\ny ::= "k" "l" | "m"\nz ::= "n" | "op"')
        )
        assert once == normalise(Rules(once.nodes, once.lines))
