"""The grammar of hints, what they mean, and what happens to malformed ones."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_samples import candidate

from hivellm_ort.errors import ManifestError
from hivellm_ort.routing import Router, Tags, parse_hint
from hivellm_ort.routing.hint import MAX_HINT_DEPTH, MAX_HINT_LENGTH, And, Hint, Not, Or, Term, holds, terms

A, B, C = (Term(None, "=", name) for name in "abc")
DOCUMENTED = "lang=en AND (task=writing OR formality>0.7) AND NOT domain=slang"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        (" ( a ) ", A),
        ("k=v", Term("k", "=", "v")),
        ("k : v", Term("k", "=", "v")),
        ("k!=v", Not(Term("k", "=", "v"))),
        ('"a b"="NOT"', Term("a b", "=", "NOT")),
        ("a OR b AND c", Or((A, And((B, C))))),
        ("(a or b) and c", And((Or((A, B)), C))),
        ("a || b && !c", Or((A, And((B, Not(C)))))),
        ("NOT a AND b", And((Not(A), B))),
        ("not not a", Not(Not(A))),
        ("a And b AND c", And((A, B, C))),
        ("x>1", Term("x", ">", "1")),
        ("x >= -0.5 or x<=1e3", Or((Term("x", ">=", "-0.5"), Term("x", "<=", "1e3")))),
        ("query=es|ql", Term("query", "=", "es|ql")),
        ("lang=pt-BR", Term("lang", "=", "pt-BR")),
        ("notable OR order", Or((Term(None, "=", "notable"), Term(None, "=", "order")))),
        (
            DOCUMENTED,
            And(
                (
                    Term("lang", "=", "en"),
                    Or((Term("task", "=", "writing"), Term("formality", ">", "0.7"))),
                    Not(Term("domain", "=", "slang")),
                )
            ),
        ),
    ],
)
def test_parse(text: str, expected: Hint) -> None:
    """Terms, connectives of both spellings, their precedence, and the example of the format's document."""
    assert expected == parse_hint(text)


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "expected a term, NOT or an opening parenthesis, found the end"),
        ("a=", 3, "expected a value, found the end"),
        ("a=(b)", 3, "expected a value, found '('"),
        ("a = AND", 5, "expected a value, found 'AND'"),
        ("a OR", 5, "expected a term"),
        ("a b", 3, "expected AND, OR or the end, found 'b'"),
        ("(a", 3, "expected AND, OR or a closing parenthesis, found the end"),
        ("a)", 2, "expected AND, OR or the end, found ')'"),
        ("OR a", 1, "expected a term"),
        ("a=b=c", 4, "expected AND, OR or the end, found '='"),
        ("a>b", 3, "'>' compares with a number"),
        ("a>nan", 3, "'>' compares with a number"),
        ("a>1>2", 4, "expected AND, OR or the end, found '>'"),
        ('a OR  "b', 7, "character '\"' cannot stand here"),
        ("a & b", 3, "expected AND, OR or the end, found '&'"),
        ("(" * (MAX_HINT_DEPTH + 1) + "a", MAX_HINT_DEPTH + 1, "nested deeper than 32 levels"),
        ("!" * 900 + "a", MAX_HINT_DEPTH + 1, "nested deeper than 32 levels"),
        ("a" * (MAX_HINT_LENGTH + 1), MAX_HINT_LENGTH + 1, "longer than 1000 characters"),
    ],
)
def test_faults(text: str, column: int, what: str) -> None:
    """The message names the column and what was expected there."""
    with pytest.raises(ManifestError) as caught:
        parse_hint(text)
    assert str(caught.value).startswith(f"router_hint, column {column}: {what}")
    assert "/routing/router_hint" == caught.value.pointer


@given(st.text(alphabet='abAND OR!&|()=:<>"0.é\ud800\n', max_size=40))
def test_any_text(text: str) -> None:
    """Any text is read, or is a fault with a column."""
    try:
        hint = parse_hint(text)
    except ManifestError as error:
        assert str(error).startswith("router_hint, column ")  # noqa: PT017 - either outcome is right
    else:
        assert isinstance(holds(hint, {}), bool)


def _written(hint: Hint) -> str:
    match hint:
        case Term():
            return str(hint)
        case Not(operand):
            return f"NOT ({_written(operand)})"
        case And(operands):
            return " AND ".join(f"({_written(operand)})" for operand in operands)
        case Or(operands):
            return " OR ".join(f"({_written(operand)})" for operand in operands)


def _truth(hint: Hint, true: set[str]) -> bool:
    match hint:
        case Term():
            return hint.value in true
        case Not(operand):
            return not _truth(operand, true)
        case And(operands):
            return all(_truth(operand, true) for operand in operands)
        case Or(operands):
            return any(_truth(operand, true) for operand in operands)


HINTS: st.SearchStrategy[Hint] = st.recursive(
    st.sampled_from([A, B, C]),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: And(tuple(some))),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: Or(tuple(some))),
    ),
    max_leaves=6,
)


@given(HINTS, st.sets(st.sampled_from("abc")))
def test_written_and_read(hint: Hint, true: set[str]) -> None:
    """A hint that is written out reads back as itself, and holds when logic says so."""
    assert hint == parse_hint(_written(hint))
    assert _truth(hint, true) == holds(hint, {"": tuple(true)})


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("database=sql", {"database": ("SQL",)}, True),
        ("Database=sql", {"database": ("mongo", "sql")}, True),
        ("task=query-dsl", {"task": ("query_dsl",)}, True),
        ("database=sql", {"format": ("sql",)}, False),
        ("sql", {"format": ("sql",)}, True),
        ("sql", {"": ("sql",)}, True),
        ("sql", {"sql": ("yes",)}, False),
        ("NOT domain=slang", {"lang": ("en",)}, True),
        ("formality>0.7", {"formality": ("0.9",)}, True),
        ("formality>0.7", {"formality": ("0.7",)}, False),
        ("formality>=0.7", {"formality": ("0.70",)}, True),
        ("formality>0.7", {"formality": ("high", "nan", "inf")}, False),
        ("formality<1", {}, False),
        (DOCUMENTED, {"lang": ("en",), "formality": ("0.8",)}, True),
        (DOCUMENTED, {"lang": ("en",), "formality": ("0.8",), "domain": ("slang",)}, False),
    ],
)
def test_holds(text: str, tags: Tags, expected: bool) -> None:
    """What is not known does not hold; numbers are compared as numbers."""
    assert expected == holds(parse_hint(text), tags)


def test_depth_is_not_length() -> None:
    """Parentheses side by side are not nested, and the deepest nesting that is allowed is read."""
    assert Or((A,) * 100) == parse_hint(" OR ".join(["(a)"] * 100))
    assert A == parse_hint("(" * MAX_HINT_DEPTH + "a" + ")" * MAX_HINT_DEPTH)


def test_terms() -> None:
    """A term under an odd number of negations speaks against."""
    found = [(str(term), positive) for term, positive in terms(parse_hint("a AND NOT (b OR NOT k=c)"))]
    assert [("a", True), ("b", False), ("k=c", True)] == found


def test_malformed_hint_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """An expert with a faulty hint is ranked by the rest, and the fault is logged once per expert."""
    experts = [
        candidate(name, "sonnet", hint="(poetry=sonnet") for name in ("expert-faulty-1", "expert-faulty-2")
    ]
    with caplog.at_level(logging.WARNING, logger="hivellm_ort"):
        for _ in range(3):
            routes = Router(experts).rank("A sonnet, please")
    assert ["expert-faulty-1", "expert-faulty-2"] == [route.name for route in routes]
    assert [
        f"expert {route.name}: router_hint, column 15: expected AND, OR or a closing parenthesis, found the end; "
        "the hint is ignored"
        for route in routes
    ] == [record.message for record in caplog.records]
