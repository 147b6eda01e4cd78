"""Messages and dialects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hivellm_ort.text.prompt import build_messages, dialect_of

MANIFESTS = Path(__file__).parents[2].parent / "shared" / "hivellm" / "manifests"
"""Published manifests; not part of the repository."""

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


def test_a_developer_is_a_system() -> None:
    """A conversation that begins with a turn of the developer has its system message."""
    turns = [{"role": "developer", "content": "Task: query_dsl"}]

    assert [*turns, USER] == build_messages("List all users", messages=turns, dialect="elastic")
    with pytest.raises(ValueError, match="two system messages"):
        build_messages("Q", messages=turns, schema="DDL")


@pytest.mark.parametrize("name", ["prompt", "schema", "system"])
def test_texts_are_texts(name: str) -> None:
    """What is put into the messages by option must be text."""
    options: dict[str, Any] = {"prompt": "Q", name: 5}
    with pytest.raises(TypeError, match=f"^{name} is int: it must be a text"):
        build_messages(**options)


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


EXPERTS = {
    "expert-sql": (
        ["database:sql", "database:postgresql", "query:sql", "task:text2sql", "feature:schema_understanding"],
        "sql-postgres",
        {"schema": "CREATE TABLE t (a INT);"},
        "Dialect: postgres\nSchema:\nCREATE TABLE t (a INT);",
    ),
    "expert-json": (
        ["format:json", "format:openapi", "task:json_generation", "feature:schema_understanding"],
        "json",
        {"schema": '{"type": "object"}', "system": "Task: json_generation\nFormat: json"},
        'Task: json_generation\nFormat: json\nSchema:\n{"type": "object"}',
    ),
    "expert-elastic": (
        ["database:elasticsearch", "query:dsl", "query:kql", "feature:query_dsl"],
        "json",
        {"system": "Dialect: elastic\nTask: query_dsl\nIndex: logs-*"},
        "Dialect: elastic\nTask: query_dsl\nIndex: logs-*",
    ),
    "expert-neo4j": (
        ["database:neo4j", "query:cypher", "language:en"],
        "cypher",
        {"schema": "Node properties:\n- **Person**"},
        "Dialect: cypher\nSchema:\nNode properties:\n- **Person**",
    ),
    "expert-typescript": (["language:typescript"], None, {}, "Dialect: typescript"),
    "expert-tools": (
        ["format:json", "task:tool_calling"],
        "tool-call",
        {"system": "Role: expert-tools planner"},
        "Role: expert-tools planner",
    ),
}
"""Capabilities and grammar type as published, what the caller gives, and the system message of the training data."""


@pytest.mark.parametrize("name", EXPERTS)
def test_system_messages_of_the_published_experts(name: str) -> None:
    """Each expert gets the system message that it was trained on."""
    capabilities, grammar_type, options, expected = EXPERTS[name]
    dialect = dialect_of(capabilities, grammar_type)

    assert [{"role": "system", "content": expected}, USER] == build_messages(
        "List all users", dialect=dialect, **options
    )


@pytest.mark.parametrize("name", ["expert-sql", "expert-json", "expert-elastic"])
def test_dialects_of_the_published_manifests(name: str) -> None:
    """The whole lists of the published manifests give what the short ones above do."""
    file = MANIFESTS / f"{name}.json"
    if not file.exists():
        pytest.skip("the published manifests are not on this machine")
    manifest = json.loads(file.read_bytes())
    capabilities, grammar_type, *_ = EXPERTS[name]
    published = manifest["training"]["decoding"]["grammar_type"]

    assert grammar_type == published
    assert dialect_of(capabilities, grammar_type) == dialect_of(manifest["capabilities"], published)
    # The capabilities alone are enough, for manifests without a grammar.
    assert dialect_of(capabilities, grammar_type) == dialect_of(manifest["capabilities"])
