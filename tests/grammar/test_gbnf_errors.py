"""What is wrong with a grammar is told with its line, column and rule."""

from __future__ import annotations

import pytest

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf

# A text, the line and the column of its fault, and what the message says of it.
MALFORMED = [
    ("", 1, 1, "there is no rule 'root'"),
    ("# only a comment", 1, 17, "there is no rule 'root'"),
    ('a ::= "x"', 1, 10, "there is no rule 'root'"),
    ("root", 1, 5, "expected `::=` after the rule's name, not the end of the grammar"),
    ('root :: "a"', 1, 6, "expected `::=` after the rule's name, not ':'"),
    ('root ::= "a', 1, 10, "the literal has no end"),
    ('root ::= "a\nb"', 1, 10, "the literal has no end"),
    ("root ::= [a", 1, 10, "the class has no end"),
    ("root ::= [a\n]", 1, 10, "the class has no end"),
    ('root ::= ("a"', 1, 10, "the group has no end"),
    ('root ::= ("a"\n(\n', 2, 1, "the group has no end"),
    ('root ::= "a")', 1, 13, "unexpected ')'"),
    ('root ::= "a" | ("b" | "c"]', 1, 26, "unexpected ']'"),
    ('root ::= "\\q"', 1, 11, "unknown escape \\q"),
    ('root ::= "\\x4"', 1, 11, "\\x takes 2 hexadecimal digits"),
    ('root ::= "\\u12G4"', 1, 11, "\\u takes 4 hexadecimal digits"),
    ('root ::= "\\U00110000"', 1, 11, "U+110000 is not a character"),
    ('root ::= "\\ud83d"', 1, 11, "U+D83D is not a character"),
    ("root ::= [\\uDC00]", 1, 11, "U+DC00 is not a character"),
    ('root ::= "a\\', 1, 12, "unknown escape \\"),
    ("root ::= [z-a]", 1, 11, "the range ends before it begins"),
    ("root ::= []", 1, 10, "the class is empty"),
    ("root ::= [^]", 1, 10, "the class is empty"),
    ("root ::= [^\\x00-\\U0010FFFF]", 1, 10, "the class holds no character"),
    ('root ::= a\n\nb ::= "b"', 1, 10, "no rule 'a' is defined"),
    ('root ::= "a"\nroot ::= "b"', 2, 1, "the rule is defined at line 1 too"),
    ('root ::= * "a"', 1, 10, "there is nothing before '*' to repeat"),
    ('root ::= "a" | ? "b"', 1, 16, "there is nothing before '?' to repeat"),
    ("root ::= ( + )", 1, 12, "there is nothing before '+' to repeat"),
    ('root ::= "a"{}', 1, 13, "a repetition is {m}, {m,}, {m,n} or {,n}"),
    ('root ::= "a"{,}', 1, 13, "a repetition is {m}, {m,}, {m,n} or {,n}"),
    ('root ::= "a"{2,1}', 1, 13, "the repetition ends below its start"),
    ('root ::= "a"{x}', 1, 13, "a repetition is {m}, {m,}, {m,n} or {,n}"),
    ('root ::= "a"{1', 1, 13, "a repetition is {m}, {m,}, {m,n} or {,n}"),
    ('root ::= "a"{2001}', 1, 14, "more than 2000 repetitions (max_repetition)"),
    (
        'root ::= ("a"{1000}){1000}',
        1,
        21,
        "written out, the rules hold more than 100000 items (max_expanded)",
    ),
    ("root ::= 'a'", 1, 10, 'unexpected "\'"'),
    ('root ::= "a" ; "b"', 1, 14, "unexpected ';'"),
    ('root ::= "a"\n"b"', 2, 1, "expected the name of a rule, not '\"'"),
    ('::= "a"', 1, 1, "expected the name of a rule, not ':'"),
    ('root ::= a ::= "b"', 1, 10, "unexpected 'a'"),
    ('root ::= ("a" |\nb ::= "c"', 2, 1, "unexpected 'b'"),
    ("root ::= <think", 1, 10, "a token is written `<text>` without blanks, or `<[id]>`"),
    ("root ::= <>", 1, 10, "a token is written `<text>` without blanks, or `<[id]>`"),
    ("root ::= <[12>", 1, 10, "a token is written `<text>` without blanks, or `<[id]>`"),
    ("root ::= <[99999999999]>", 1, 10, "the token id is larger than 2147483647"),
    ('root ::= !"a"', 1, 10, "a token is written `<text>` without blanks, or `<[id]>`"),
    ('root ::= "\xe9" \xfc', 1, 14, "unexpected '\xfc'"),
    ('root ::= "a"\r\nb = "c"', 2, 3, "expected `::=` after the rule's name, not '='"),
    ('\ufeffroot ::= "a" %', 1, 14, "unexpected '%'"),
    ('root ::= "a" root_2 b-c', 1, 14, "no rule 'root_2' is defined"),
    ('root ::= "\ud800"', 1, 11, "U+D800 is half of a surrogate pair, not a character"),
    ('x ::= "a"\r\ny ::=\r\n  [b-\r\n', 3, 3, "the class has no end"),
    ('root ::= "a"{-1}', 1, 13, "a repetition is {m}, {m,}, {m,n} or {,n}"),
    ("root ::= ]", 1, 10, "unexpected ']'"),
    ("root ::= }", 1, 10, "unexpected '}'"),
]


@pytest.mark.parametrize(("text", "line", "column", "said"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(text: str, line: int, column: int, said: str) -> None:
    """The error names the place, counted from 1 in characters, and the fault."""
    with pytest.raises(GrammarError) as caught:
        parse_gbnf(text)
    assert (line, column) == (caught.value.line, caught.value.column)
    assert str(caught.value).startswith(f"line {line}, column {column}")
    assert said in str(caught.value)


def test_the_rule_is_named() -> None:
    """The error names the rule in which the fault is, shortened when it is long."""
    with pytest.raises(
        GrammarError, match=r"^line 2, column 17, in rule 'select-list': no rule 'item' is defined"
    ):
        parse_gbnf("root ::= select-list\nselect-list ::= item")
    with pytest.raises(GrammarError, match=r"in rule 'a{57}\.\.\.':"):
        parse_gbnf(f"{'a' * 1000} ::= %")
