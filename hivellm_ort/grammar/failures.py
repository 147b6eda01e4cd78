"""Turns errors of llguidance into errors that name the cause and what to do."""

from __future__ import annotations

import re

from hivellm_ort.errors import GrammarError
from hivellm_ort.printable import printable

__all__ = ["compile_failure", "dead_end", "run_failure"]

_LONGEST = 400
# Words in its messages, and the field of GrammarLimits for that limit. The first match counts.
_LIMITS = {
    "Current row has": "max_items_in_row",
    "Too many items": "step_max_items",
    "initial lexer configuration": "initial_lexer_fuel",
    "relevance of lexemes": "initial_lexer_fuel",
    "too many expressions": "step_lexer_fuel",
    "too many states": "max_lexer_states",
    "grammar size": "max_grammar_size",
}
_SCHEMA_CURES = {
    "Unsatisfiable": "change the schema: no value satisfies it",
    "recursion limit": "nest it less deeply, or move parts to $defs",
    "not disjoint": "make the patterns exclude each other, or use one",
}
_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")


def compile_failure(message: str, *, kind: str, source: str) -> GrammarError:
    """Return the error for a grammar that llguidance does not compile.

    Args:
        message: The message of llguidance.
        kind: A `Kind`.
        source: Source of the grammar, for messages.
    """
    limit = _limit_of(message)
    if limit is not None:
        return _over(limit, message, source)
    line = column = None
    place = _PLACE.match(message)
    text = message[place.end() :] if place else message
    # It appends the translated grammar, which would confuse the author of another notation.
    text = text.split("\n   1 | ")[0].split("; following special tokens")[0]
    where = source
    if place is not None and kind == "lark":
        line, column = int(place[1]), int(place[2])
        where = f"{source}, line {line}, column {column}"
    cure = "correct the grammar"
    if kind == "json_schema":
        cure = next((cure for words, cure in _SCHEMA_CURES.items() if words in text), "correct the schema")
    return GrammarError(f"{where}: {_words(text)}; {cure}", line=line, column=column)


def run_failure(message: str, *, source: str) -> GrammarError:
    """Return the error for an answer that llguidance cannot continue.

    Args:
        message: The message of llguidance.
        source: Source of the grammar, for messages.
    """
    limit = _limit_of(message)
    if limit is not None:
        return _over(limit, message, source)
    if message.startswith("NoExtension"):
        return dead_end(source)
    return GrammarError(
        f"{source}: the grammar's parser failed ({_words(message)}); simplify the grammar, or update llguidance"
    )


def dead_end(source: str) -> GrammarError:
    """Return the error for an incomplete answer that no token can continue."""
    return GrammarError(
        f"{source}: the grammar is not complete, and no token may come next; change the rule that asks for what no "
        "text can be, or for a token that this model does not have"
    )


def _limit_of(message: str) -> str | None:
    return next((limit for words, limit in _LIMITS.items() if words in message), None)


def _over(limit: str, message: str, source: str) -> GrammarError:
    return GrammarError(
        f"{source}: the grammar's parser reached its limit {limit} ({_words(message)}); make the grammar less "
        "ambiguous or its repetitions smaller"
    )


def _words(message: str) -> str:
    return printable(message.replace("<non-verbose/>", ""), most=_LONGEST)
