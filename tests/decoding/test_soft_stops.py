"""Stops that a package was published with, and think blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_samples import EXAMPLES
from stopping import feed

from hivellm_ort.decoding.stops import StopMatcher

# As published by HiveLLM.
SQL = [";", "\n\n"]
NEO4J = ["\n\n", "```", "};", ");"]
TOOLS = ["```", "}", "\n\n"]
JSON = ["\n\n"]
ALL = sorted({*SQL, *NEO4J, *TOOLS})

TOOL_CALL = '{"tool_calls": [{"name": "f", "arguments": {"x": "a } b"}}], "next_step": null, "fallback": {}}'
FENCED = "```cypher\nMATCH (n {name: 'x'})\n\nRETURN count(n);\n```"


def cut(text: str, soft: list[str], **options: Any) -> str:
    """Return what is left of `text`, the same for every way of cutting it in two and for single characters."""
    expected = feed(StopMatcher([], soft, **options), [text])
    for pieces in ([text[:i], text[i:]] for i in range(1, len(text))):
        assert expected == feed(StopMatcher([], soft, **options), pieces)
    assert expected == feed(StopMatcher([], soft, **options), list(text))
    return expected


@pytest.mark.parametrize(
    ("soft", "answer", "after"),
    [
        (TOOLS, TOOL_CALL, "\n\nThis calls f."),
        (TOOLS, TOOL_CALL, "}"),
        (TOOLS, TOOL_CALL.replace(" ", "\n\n"), " x"),
        (TOOLS, '{"a": "it\'s"}', "\n"),
        (TOOLS, r'{"a": "\"}\\"}', "{"),
        (TOOLS, "```json\n" + TOOL_CALL + "\n```", "\nDone."),
        (TOOLS, "\n\n" + TOOL_CALL, "\n\n"),
        (NEO4J, "MATCH (n) WHERE n.x IN ['a);', \"};\"] RETURN count(n);", "\nMATCH (m) RETURN m;"),
        (NEO4J, "MATCH (a)--(b) RETURN collect({a: a, b: [b]});", " "),
        (NEO4J, "CALL {\n\n  MATCH (n) RETURN n\n\n};", "\n"),
        (NEO4J, FENCED, "\n\nThis counts."),
        (NEO4J, "Here's the query:\n" + FENCED, "\n"),
        (NEO4J, "MATCH (n)\nRETURN n", "\n\nThis returns all."),
        (
            SQL,
            "SELECT ';' AS a, \";\", E'it\\'s;' FROM t -- all; of them\nWHERE b = 'it''s;';",
            "\nSELECT 2;",
        ),
        (SQL, "WITH a AS (\n\n  SELECT 1\n\n)\nSELECT 'x\n\ny' FROM a", "\n\nThe query"),
        (SQL, "SELECT 1 -- one\n", "\nThe query"),
        (SQL, "CREATE FUNCTION f() AS $$ BEGIN a; b; END; $$ LANGUAGE plpgsql;", " SELECT 1"),
        (SQL, "Here's it: SELECT 1;", " SELECT 2"),
        (SQL, "```sql\nSELECT 1;\n\nSELECT 2;\n```", "\n\n"),
        (JSON, '{\n\n"query": {"match": {\n\n}}\n}', "\n\nThis query"),
        (JSON, "process where name == 'x\n\ny'", "\n\nThis query"),
        (["###"], "### Answer\nSELECT 1", "###"),
        (["Question:"], '{"a": "Question: b", "c": 1}', "Question: d"),
        (["Question:"], "f(a, Answer", "Question: d"),
        (['"}', "]\n"], '{"a": ["b"]\n, "c": "d"}', '"}'),
    ],
)
def test_a_good_answer_is_left_whole(soft: list[str], answer: str, after: str) -> None:
    """The answer ends at its own end, whatever it holds, and nothing that follows is shown."""
    assert answer == cut(answer + after, soft).removesuffix("\n") + "\n" * answer.endswith("\n")


@pytest.mark.parametrize(
    ("soft", "text"),
    [
        (TOOLS, '{"a": {"b": 1}'),
        (NEO4J, "```cypher\nMATCH (n)\n\nRETURN (n);"),
        (SQL, "SELECT (1;\n\n"),
        (SQL, "SELECT 'it; is\n\n"),
        (SQL, r"WHERE a LIKE '\%' ESCAPE '\' AND n = 'a; b'"),
        (JSON, "\n\n\n\n"),
        (JSON, "\n\n  a\n"),
        ([], "a;\n\n}"),
    ],
)
def test_what_is_not_complete_goes_on(soft: list[str], text: str) -> None:
    """Nothing stops before what was opened is closed, nor before the answer has begun."""
    assert text == cut(text, soft)


@pytest.mark.parametrize(
    ("text", "expected", "matched"),
    [
        ("a;b", "a;", ";"),
        ("f(1);", "f(1);", ";"),
        ("a\n\nb", "a", "\n\n"),
        ("```\nx```y", "```\nx```", "```"),
        ("a\n", "a\n", None),
    ],
)
def test_which_stop_was_found(text: str, expected: str, matched: str | None) -> None:
    """`matched` names it."""
    matcher = StopMatcher([], [";", ");", "\n\n", "```"])

    assert expected == feed(matcher, list(text))
    assert matched == matcher.matched


def test_both_kinds_together() -> None:
    """The text ends at whichever comes first; the caller's own stops are strict, also where both name one."""
    assert "SELECT 'a" == feed(StopMatcher([";"], [";"]), ["SELECT 'a;b';"])
    assert "f(1)" == feed(StopMatcher([";"], [");"]), list("f(1);"))
    assert "f(1);" == feed(StopMatcher(["x"], [");"]), list("f(1);x"))
    assert "f" == feed(StopMatcher(["(1);"], [");"]), list("f(1);x"))
    assert "a" == feed(StopMatcher(["\n"], ["\n\n"]), list("a\n\nb"))
    # The soft one waits for the strict one that began inside it.
    assert "f(1);" == feed(StopMatcher([";x"], [");"]), list("f(1);y"))
    assert "f(1)" == feed(StopMatcher([";x"], [");"]), list("f(1);x"))


def test_include_stop_leaves_it_in_the_text() -> None:
    """Whichever kind it is."""
    assert "a\n\n" == cut("a\n\nb", JSON, include_stop=True)
    assert "f(1);" == cut("f(1);\n", NEO4J, include_stop=True)
    for pieces in (["a END b"], list("a END b")):
        assert "a END" == feed(StopMatcher(["END"], include_stop=True), pieces)


@pytest.mark.parametrize("before", ["", "\n", " \n\n"])
@pytest.mark.parametrize("gap", ["", "\n", "\n\n", " \n\n "])
def test_nothing_stops_in_a_think_block(before: str, gap: str) -> None:
    """Neither in the block at the beginning nor in the whitespace after it; then everything is as ever."""
    block = before + "<think>\nIt's {a};\n\nso ```b</think>" + gap
    text = block + '{"a":\n\n1}'

    assert text == cut(text + "\n\nx", JSON)
    assert text == cut(text + "\n\nx", ALL)
    for pieces in ([text], list(text)):
        strict = StopMatcher(["{", "<t", "</", "so"])
        assert block == feed(strict, pieces)
        assert "{" == strict.matched


@pytest.mark.parametrize("text", ["<think>\na;\n\nb", "<think>", " <think></thin", "<think></think>\n\n"])
def test_a_think_block_without_an_end(text: str) -> None:
    """Nothing stops, and nothing is lost."""
    assert text == cut(text, ALL)
    assert text == feed(StopMatcher(["\n\n", "a", "<"]), list(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<thin>", ""),
        ("<thi", ""),
        ("x<think>", "x"),
        ("\n<b>", "\n"),
        ("\n\n<think>", ""),
        ("a</think>;", "a"),
    ],
)
def test_what_is_no_think_block(text: str, expected: str) -> None:
    """Strict stops count in what only looks like one, and in whitespace before it."""
    for pieces in ([text], list(text)):
        assert expected == feed(StopMatcher(["<", "\n\n"]), pieces)


def test_a_stop_that_reaches_into_the_tag_does_not_count() -> None:
    """Whitespace before the tag is shown, though a stop began with it."""
    assert "\n<think>\n" == feed(StopMatcher(["\n<"]), list("\n<think>\n"))


PIECES = st.lists(
    st.sampled_from(
        [
            *"ab;\n (){}[]'\"`\\$-/*E",
            "\n\n",
            "```",
            ");",
            "};",
            "--",
            "/*",
            "*/",
            "$$",
            "<think>",
            "</think>",
            "<t",
        ]
    ),
    max_size=25,
)
STOPS = st.lists(st.sampled_from([*ALL, "a", "b)", "\n", ")", "a\n\n", "`", "</", "<"]), max_size=5)


@settings(max_examples=10 * EXAMPLES)
@given(pieces=PIECES, soft=STOPS, strict=STOPS, include_stop=st.booleans())
def test_cutting_into_pieces_changes_nothing(
    pieces: list[str], soft: list[str], strict: list[str], include_stop: bool
) -> None:
    """The result and the stop found are the same for one piece, for given pieces and for single characters."""
    text = "".join(pieces)
    matchers = [StopMatcher(strict, soft, include_stop=include_stop) for _ in range(3)]
    shown = [feed(m, parts) for m, parts in zip(matchers, ([text], pieces, list(text)), strict=True)]

    assert shown[0] == shown[1] == shown[2]
    assert matchers[0].matched == matchers[1].matched == matchers[2].matched
    assert text.startswith(shown[0])
    assert matchers[0].matched is not None or text == shown[0]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab}]\"'\\;\n`$-/*( ", max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("k}\"';", max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=2 * EXAMPLES)
@given(
    value=st.dictionaries(st.text("k}", max_size=3), VALUES),
    indent=st.sampled_from([None, 2]),
    after=st.text(),
)
def test_every_json_object_is_left_whole(value: dict[str, Any], indent: int | None, after: str) -> None:
    """An object ends at its own end, however it is written and whatever strings it holds."""
    answer = json.dumps(value, indent=indent, ensure_ascii=False)

    assert answer == feed(StopMatcher([], ALL), [answer, after])
    assert answer == feed(StopMatcher([], ALL), list(answer + after))


LITERALS = st.text('ab;)}\n `$-/*("', max_size=8).map(lambda text: f"'{text}'")
NAMES = st.text("ab;)}\n $-/*('", min_size=1, max_size=8).map(lambda text: f'"{text}"')
CLAUSES = st.lists(
    LITERALS | NAMES | st.sampled_from(["a", "(b, 1)", "f('x)')", "-- all; of it's\n", "/* ; */"])
)


@settings(max_examples=2 * EXAMPLES)
@given(clauses=CLAUSES, after=st.text())
def test_every_statement_is_left_whole(clauses: list[str], after: str) -> None:
    """A statement ends at the semicolon that ends it, whatever its literals and comments hold."""
    answer = " ".join(["SELECT", *clauses]) + ";"

    assert answer == feed(StopMatcher([], [";"]), list(answer + after))


@pytest.mark.parametrize(
    ("soft", "expected"),
    [
        ([""], "soft stop string 0 has 0 characters"),
        (["a" * 1025], "soft stop string 0 has 1025 characters"),
        (["a"] * 65, "65 soft stop strings are too many: at most 64"),
        ("ab", "soft stop strings must be a list"),
    ],
)
def test_unusable_stops_are_refused(soft: list[str], expected: str) -> None:
    """Empty, overlong or too many soft stops are a ValueError that says which."""
    with pytest.raises(ValueError, match=expected):
        StopMatcher([], soft)
