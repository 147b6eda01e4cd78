"""Messages and dialects."""

from __future__ import annotations

from typing import Any

import pytest

from hivellm_ort.text.prompt import build_messages, dialect_of

USER = {"role": "user", "content": "List all users"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"dialect": "postgres"}, "Dialect: postgres"),
        ({"schema": "CREATE TABLE t (a INT);"}, "Schema:\nCREATE TABLE t (a INT);"),
        ({"schema": "DDL", "dialect": "sql"}, "Dialect: sql\nSchema:\nDDL"),
        ({"schema": "DDL", "system": "Be brief."}, "Be brief.\nSchema:\nDDL"),
        ({"schema": "DDL", "system": "Be brief.", "dialect": "sql"}, "Be brief.\nSchema:\nDDL"),
        ({"system": "Be brief.", "dialect": "sql"}, "Be brief."),
        ({"system": ""}, ""),
    ],
)
def test_system_message(options: dict[str, str], expected: str | None) -> None:
    """The system message has the lines that experts were trained on."""
    system = [] if expected is None else [{"role": "system", "content": expected}]

    assert [*system, USER] == build_messages("List all users", **options)


def test_prompt_follows_the_earlier_turns() -> None:
    """The prompt is the last user turn, and the system message comes before all turns."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

    expected = [{"role": "system", "content": "Dialect: sql"}, *turns, USER]
    assert expected == build_messages("List all users", messages=turns, dialect="sql")


def test_messages_alone_are_enough() -> None:
    """Without a prompt the messages are the conversation, copied."""
    turns = [dict(USER)]
    found = build_messages(None, messages=turns)

    assert turns == found
    assert found[0] is not turns[0]


def test_own_system_message_stays_as_it_is() -> None:
    """A conversation that begins with a system message gets no dialect."""
    turns = [{"role": "system", "content": "Task: query_dsl"}]

    assert [*turns, USER] == build_messages("List all users", messages=turns, dialect="elastic")


@pytest.mark.parametrize("option", ["schema", "system"])
def test_two_system_messages_are_refused(option: str) -> None:
    """A system message in the messages and another by option contradict each other."""
    with pytest.raises(ValueError, match="two system messages"):
        build_messages("Q", messages=[{"role": "system", "content": "S"}], **{option: "text"})


@pytest.mark.parametrize("messages", [None, []])
def test_nothing_to_answer(messages: list[dict[str, str]] | None) -> None:
    """Neither prompt nor messages is an error, even with a schema."""
    with pytest.raises(ValueError, match="nothing to answer"):
        build_messages(None, messages=messages, schema="DDL")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "x"}, r"^messages\[1\]: role is 'developer'"),
        ({"content": "x"}, r"^messages\[1\]: role is None"),
        ({"role": "user"}, r"^messages\[1\]: content must be a text, not NoneType"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            r"^messages\[1\]: content must be a text, not list",
        ),
    ],
)
def test_malformed_turns_are_named(message: Any, expected: str) -> None:
    """The error of a malformed turn begins with its index."""
    with pytest.raises(ValueError, match=expected):
        build_messages("Q", messages=[USER, message])


@pytest.mark.parametrize(
    ("grammar_type", "expected"),
    [
        ("sql-postgres", "postgres"),
        ("sql-mysql", "mysql"),
        ("sql", "sql"),
        ("cypher", "cypher"),
        ("typescript", "typescript"),
        ("python", "python"),
        ("json", "elastic"),
        ("gbnf", "elastic"),
        (None, "elastic"),
    ],
)
def test_grammar_type_decides_if_it_is_a_language(grammar_type: str | None, expected: str) -> None:
    """A grammar type that is a format leaves the answer to the capabilities."""
    assert expected == dialect_of(["database:elasticsearch", "query:dsl"], grammar_type)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (["database:postgresql"], "postgres"),
        (["database:sql", "database:postgresql", "query:sql"], "postgres"),
        (["query:sql", "language:en"], "sql"),
        (["database:neo4j", "query:cypher"], "cypher"),
        (["database:elastic"], "elastic"),
        (["Database:MySQL "], "mysql"),
        (["typescript"], "typescript"),
        (["language:python"], "python"),
        (["format:json", "format:json_schema"], None),
        (["feature:trust", "task:text2sql", "feature:nosql"], None),
        ([], None),
    ],
)
def test_capabilities_are_compared_whole(capabilities: list[str], expected: str | None) -> None:
    """A tag names a dialect only as a whole, and a precise one wins over sql."""
    assert expected == dialect_of(capabilities)
