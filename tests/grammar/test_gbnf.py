"""Grammars in GBNF are read as llama.cpp reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.limits import GrammarLimits
from hivellm_ort.grammar.syntax import (
    EMPTY,
    CharacterClass,
    Choice,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    TokenReference,
)

A, B, C = Literal("a"), Literal("b"), Literal("c")
ANY = CharacterClass((), negated=True)


def chars(*ranges: str, negated: bool = False) -> CharacterClass:
    """Return a class of the ranges, each given by its first and last character."""
    return CharacterClass(tuple((ord(low), ord(high)) for low, high in ranges), negated)


@pytest.mark.parametrize(
    ("body", "node"),
    [
        ('"a"', A),
        ('""', Literal("")),
        ("", EMPTY),
        ('"a" "b"', Sequence((A, B))),
        ('"a" | "b" "c"', Choice((A, Sequence((B, C))))),
        ('"a" |', Choice((A, EMPTY))),
        ('| "a"', Choice((EMPTY, A))),
        ('("a")', A),
        ('( "a" | ( ) )', Choice((A, EMPTY))),
        ('"a"("b")"c"', Sequence((A, B, C))),
        (r'"\"\\\n\r\t\[\]\-"', Literal('"\\\n\r\t[]-')),
        (r'"\x41\u00e9\U0001F600\x00"', Literal("Aé\U0001f600\0")),
        ('"# no comment" # a comment', Literal("# no comment")),
        ('"[a] (b) é"', Literal("[a] (b) é")),
        ("[a-c]", chars("ac")),
        ("[^a-c]", chars("ac", negated=True)),
        ("[a-zA-Z_]", chars("az", "AZ", "__")),
        ("[-a]", chars("--", "aa")),
        ("[a-]", chars("aa", "--")),
        ("[+\\-*]", chars("++", "--", "**")),
        ("[a^]", chars("aa", "^^")),
        (r"[\]\[\\]", chars("]]", "[[", "\\\\")),
        (r"[\x00-\x1F\u2028\U0001F600]", chars("\0\x1f", "\u2028\u2028", "\U0001f600\U0001f600")),
        (".", ANY),
        ('"a"?', Repeat(A, 0, 1)),
        ('"a" *', Repeat(A, 0, None)),
        ('"ab"+', Repeat(Literal("ab"), 1, None)),
        ('"a" "b"+', Sequence((A, Repeat(B, 1, None)))),
        ('("a" "b")+', Repeat(Sequence((A, B)), 1, None)),
        ('"a"{3}', Repeat(A, 3, 3)),
        ('"a"{3,}', Repeat(A, 3, None)),
        ('"a"{0,4}', Repeat(A, 0, 4)),
        ('"a"{,4}', Repeat(A, 0, 4)),
        ('"a" { 03 , 4 }', Repeat(A, 3, 4)),
        ('"a"?*{2}', Repeat(Repeat(Repeat(A, 0, 1), 0, None), 2, 2)),
        ("<think>", TokenReference("<think>")),
        ("!</think>*", Repeat(TokenReference("</think>", negated=True), 0, None)),
        ("<[1000]> !<[7]>", Sequence((TokenReference(id=1000), TokenReference(id=7, negated=True)))),
        ("<|im_end|>", TokenReference("<|im_end|>")),
        ("other", Reference("other")),
        ("digit1-9 a_b 2-x", Sequence((Reference("digit1-9"), Reference("a_b"), Reference("2-x")))),
    ],
)
def test_bodies(body: str, node: Node) -> None:
    """A rule's body becomes the tree of what is written."""
    others = 'other ::= "x"\ndigit1-9 ::= "x"\na_b ::= "x"\n2-x ::= "x"\n'
    assert node == parse_gbnf(f"{others}root ::= {body}").nodes["root"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n# a comment\n\n  "])
@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" | "b" x\nx ::= "c"',
        'root ::=\n  "a" |\n  "b" x\n\n\nx ::= "c"\n',
        'root ::=   # why\n\n  "a"\n  | "b" x # and\n# then\nx::="c"#end',
        'root ::= (\n"a"\n|\n"b"\n\nx # y\n)\n \t\nx ::= ("c"\n)',
        'root ::= "a"\n\n# between\n   | "b" x\nx ::= "c"',
    ],
)
def test_line_ends_and_comments(text: str, start: str, end: str) -> None:
    """Lines may end anyhow, and break where llama.cpp lets them and before a bar; comments stand anywhere."""
    rules = parse_gbnf((start + text).replace("\n", end))
    assert {"root": Choice((A, Sequence((B, Reference("x"))))), "x": C} == rules.nodes


def test_lines_are_remembered() -> None:
    """Each rule knows the line of its name."""
    rules = parse_gbnf('# c\r\nroot ::= x |\r\n "a"\r\n\r\nx ::= "b"\ry ::= "c"')
    assert {"root": 2, "x": 5, "y": 6} == rules.lines
    assert 0 == rules.line("z")


def test_class_spans() -> None:
    """A class tells its characters without negation, without overlaps and without surrogates."""
    assert ((97, 99),) == chars("ab", "bc", "aa").spans()
    assert ((0, 96), (100, 0xD7FF), (0xE000, 0x10FFFF)) == chars("ac", negated=True).spans()
    assert ((0, 0xD7FF), (0xE000, 0x10FFFF)) == ANY.spans()
    assert ((0xD000, 0xD7FF), (0xE000, 0xE001)) == CharacterClass(((0xD000, 0xE001),)).spans()


@pytest.mark.parametrize(
    ("limits", "text", "name"),
    [
        (GrammarLimits(max_bytes=14), 'root ::= "aéb"', "max_bytes"),
        (GrammarLimits(max_rules=1), 'root ::= a\na ::= "x"', "max_rules"),
        (GrammarLimits(max_depth=2), 'root ::= ((("a")))', "max_depth"),
        (GrammarLimits(max_depth=2), 'root ::= "a"?*+', "max_depth"),
        (GrammarLimits(max_repetition=5), 'root ::= "a"{6}', "max_repetition"),
        (GrammarLimits(max_expanded=50), 'root ::= ("ab"{5}){6}', "max_expanded"),
        (GrammarLimits(max_expanded=50), 'root ::= a\na ::= ("ab" "c"?){20}', "max_expanded"),
    ],
)
def test_limits(limits: GrammarLimits, text: str, name: str) -> None:
    """A grammar beyond a limit is refused with the limit's name, and is read under the usual limits."""
    parse_gbnf(text)
    with pytest.raises(GrammarError, match=name):
        parse_gbnf(text, limits=limits)


def test_limits_are_positive() -> None:
    """A limit of nothing is refused."""
    with pytest.raises(ValueError, match="max_rules is 0"):
        GrammarLimits(max_rules=0)


@given(st.text(alphabet='ab-_1 \t\r\n#"\\xuU[]^.(){}?*+,|:=<>!é\ud800', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text gives another error than GrammarError, and that one always has its place."""
    for whole in (text, f"root ::= {text}", f'root ::= ("a" | {text})'):
        try:
            parse_gbnf(whole)
        except GrammarError as error:
            assert f"line {error.line}, column {error.column}" in str(error)  # noqa: PT017
