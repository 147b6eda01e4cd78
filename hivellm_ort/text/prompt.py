"""Builds the messages of a request in the format that experts were trained on.

The training data of SQL and Cypher experts has `Dialect: <name>`, then `Schema:` and the schema on separate lines, as
the system message, and only the question as the user message. Experts trained on other fields (a task, a format, an
index) need a system message from the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import OptionError, OptionTypeError, argument
from hivellm_ort.text.messages import SYSTEM_ROLES, checked_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["build_messages", "dialect_of"]

_GRAMMAR_DIALECTS = {
    "sql-postgres": "postgres",
    "sql-mysql": "mysql",
    "sql": "sql",
    "cypher": "cypher",
    "typescript": "typescript",
    "python": "python",
}

_TAG_DIALECTS = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "mysql": "mysql",
    "sql": "sql",
    "cypher": "cypher",
    "neo4j": "cypher",
    "elastic": "elastic",
    "elasticsearch": "elastic",
    "typescript": "typescript",
    "javascript": "typescript",  # as the HiveLLM command line does
    "python": "python",
    "rust": "rust",
}


def build_messages(
    prompt: str | None,
    *,
    schema: str | None = None,
    system: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    dialect: str | None = None,
) -> list[dict[str, Any]]:
    r"""Return the conversation to render.

    The system message is `system`, followed by `\nSchema:\n{schema}`. Without `system` it is `Dialect: {dialect}` and
    the schema, as far as they are given. Without all three there is no system message, and the template may add its
    own. Earlier turns that begin with a system message keep it.

    Args:
        prompt: The question, appended as the last user turn; None if `messages` holds it.
        schema: The schema for the answer, such as DDL or a graph schema.
        system: The system message; may be an empty text.
        messages: Earlier turns (see `messages.checked_messages`).
        dialect: The expert's language (see `dialect_of`); used only without `system`.

    Raises:
        OptionTypeError: `prompt`, `schema` or `system` is not a text, or as `checked_messages`.
        OptionError: There is neither prompt nor message, a turn is malformed (the error names its index), or
            `schema` or `system` is given and `messages` begins with a system message.
    """
    for name, text in (("prompt", prompt), ("schema", schema), ("system", system)):
        if text is not None and not isinstance(text, str):
            raise OptionTypeError(f"{name} is {type(text).__name__}: it must be a text")
    turns = checked_messages(messages)
    if prompt is not None:
        turns.append({"role": "user", "content": prompt})
    if not turns:
        raise OptionError("nothing to answer: give a prompt, or messages with at least one turn")
    if turns[0]["role"] in SYSTEM_ROLES:
        if schema is not None or system is not None:
            raise OptionError(
                f"two system messages: messages[0] is one, so leave out {argument('schema')} and "
                f"{argument('system')}, or write their text into messages[0]"
            )
        return turns
    lines = []
    if system is not None:
        lines.append(system)
    elif dialect is not None:
        lines.append(f"Dialect: {dialect}")
    if schema is not None:
        lines.append(f"Schema:\n{schema}")
    return [{"role": "system", "content": "\n".join(lines)}, *turns] if lines else turns


def dialect_of(capabilities: Sequence[str], grammar_type: str | None = None) -> str | None:
    """Return the name after `Dialect:` in an expert's training data, derived from its manifest.

    A language in the grammar type wins ("sql-postgres" is "postgres"). Else it is the first capability that is a
    language, alone or after a colon (`database:postgresql`). "sql" counts only if nothing is more precise. Only whole
    tags match: "trust" is not Rust. JSON is a format, not a dialect.

    Args:
        capabilities: The manifest's `capabilities`, such as `["database:sql", "task:text2sql"]`.
        grammar_type: The manifest's `training.decoding.grammar_type`, if it has one.

    Returns:
        "postgres", "mysql", "sql", "cypher", "elastic", "typescript", "python", "rust" or None.
    """
    if grammar_type in _GRAMMAR_DIALECTS:
        return _GRAMMAR_DIALECTS[grammar_type]
    tags = (capability.rpartition(":")[2].strip().lower() for capability in capabilities)
    found = [_TAG_DIALECTS[tag] for tag in tags if tag in _TAG_DIALECTS]
    return next((dialect for dialect in found if dialect != "sql"), "sql" if found else None)
