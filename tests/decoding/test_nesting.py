"""What is open at the end of a text."""

from __future__ import annotations

import pytest

from hivellm_ort.decoding.nesting import Level, Nesting

NOTHING, COMMENT, BRACKET, LITERAL = Level


def levels(text: str, escaping: str = "\"'`") -> list[Level]:
    """Return what is open after each character of `text`."""
    nesting = Nesting(escaping)
    result = []
    for character in text:
        nesting.push(character)
        result.append(nesting.level)
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NOTHING),
        ("f(a[1], {b: 2})", NOTHING),
        ("f(a[1", BRACKET),
        ("f(a[1)", BRACKET),
        ("a) b", NOTHING),
        ("a) b(", BRACKET),
        ('{"a": "}', LITERAL),
        ('{"a": "}"', BRACKET),
        ('{"a": "}"}', NOTHING),
        (r'"a\"', LITERAL),
        (r'"a\\"', NOTHING),
        ("'a''b'", NOTHING),
        ("'a''b", LITERAL),
        ("'a\n\nb", LITERAL),
        ("''", NOTHING),
        ("'\"'", NOTHING),
        ("Here's what it isn't", NOTHING),
        ("users' names, 5' tall", NOTHING),
        (r"E'it\'s", LITERAL),
        (r"WHERE n = N'it", LITERAL),
        ("MATCH (n:`a(b`)", NOTHING),
        ("`a", LITERAL),
        ("`a``b`", NOTHING),
        ("AS $$ BEGIN x; (", LITERAL),
        ("AS $body$ $$ $bod $body", LITERAL),
        ("AS $body$ $$ $bod $body$", NOTHING),
        ("$$$", LITERAL),
        ("costs $5, not $6", NOTHING),
        ("WHERE a = $1 AND b = $2", NOTHING),
        ("[$first, $second]", NOTHING),
        ("SELECT 1 -- it's (", COMMENT),
        ("SELECT 1 -- it's (\n", NOTHING),
        ("( // a )", BRACKET),
        ("( // a )\n)", NOTHING),
        ("/* it's */ x", NOTHING),
        ("/*/ x", LITERAL),
        ("/* ( */", NOTHING),
        ("http://x/*(", BRACKET),
        ("(a)--(b)-->(c)", NOTHING),
        ("```sql\nSELECT 1", BRACKET),
        ("```sql\nSELECT 1\n```", NOTHING),
        ("```\nf(\n```", NOTHING),
        ("(```\nf(\n```", BRACKET),
        ("```\n'a\n```", NOTHING),
        ("```\n'a ```", LITERAL),
        ("```\n-- it ```", BRACKET),
        ("```\n-- it\n  ```", NOTHING),
        ("```json {} ```", NOTHING),
        ("a ` b\n```\nc", BRACKET),
        ("'```'", NOTHING),
        ("``", NOTHING),
        ("````", BRACKET),
    ],
)
def test_what_is_open(text: str, expected: Level) -> None:
    """Brackets, literals, comments and fences of the usual languages are followed."""
    assert expected is (levels(text) or [NOTHING])[-1]


def test_the_levels_along_a_text() -> None:
    """The level is that after each character."""
    expected = [NOTHING, BRACKET, LITERAL, LITERAL, BRACKET, NOTHING, NOTHING]

    assert expected == levels('f(";");')


def test_a_backslash_escapes_only_where_it_is_told_to() -> None:
    """SQL's backslash is a character like others."""
    assert LITERAL is levels(r"ESCAPE '\'")[-1]
    assert NOTHING is levels(r"ESCAPE '\'", '"`')[-1]
    assert LITERAL is levels(r'"\"', '"`')[-1]


def test_a_tag_may_be_long_but_not_endless() -> None:
    """What is remembered of a text is bounded."""
    assert LITERAL is levels("$" + "a" * 60 + "$")[-1]
    assert NOTHING is levels("$" + "a" * 90 + "$")[-1]
