"""Limits on grammars and on the work of their parser."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hivellm_ort.errors import OptionError

__all__ = ["DEFAULT", "GrammarLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GrammarLimits:
    """Limits on a grammar's text and on the work of its parser.

    The last six fields have the names and defaults of llguidance's `LLParserLimits`.

    Attributes:
        max_bytes: Length of the grammar's text in bytes of UTF-8.
        max_options: Number of texts of a choice.
        max_rules: Number of rules.
        max_depth: Depth of nested groups.
        max_repetition: Largest number in `{m,n}`.
        max_expanded: Items of all rules after expanding every `{m,n}`. Nested repetitions multiply.
        max_items_in_row: Earley items at one position.
        step_max_items: Earley items for one mask.
        step_lexer_fuel: Work of the lexer for one mask.
        initial_lexer_fuel: Work of the lexer to compile the grammar.
        max_lexer_states: States of the lexer.
        max_grammar_size: Symbols of the compiled grammar.
    """

    max_bytes: int = 1 << 20
    max_options: int = 20_000
    max_rules: int = 10_000
    max_depth: int = 200
    max_repetition: int = 2_000
    max_expanded: int = 100_000
    max_items_in_row: int = 2_000
    step_max_items: int = 50_000
    step_lexer_fuel: int = 200_000
    initial_lexer_fuel: int = 1_000_000
    max_lexer_states: int = 250_000
    max_grammar_size: int = 500_000

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            OptionError: A limit is not a positive whole number.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise OptionError(f"{field.name} is {value!r}; a limit is a whole number of at least 1")


DEFAULT = GrammarLimits()
