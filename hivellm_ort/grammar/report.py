"""Checks grammars, and which texts they accept, without a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.compiler import compile_matcher, to_llguidance
from hivellm_ort.grammar.failures import run_failure
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import DEFAULT
from hivellm_ort.grammar.lint import warnings_of
from hivellm_ort.grammar.vocabulary import replace_tokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["GrammarReport", "accepts", "check_grammar"]

_LARK_RULE = re.compile(r"^[?!]?[A-Za-z_]\w*(?:\[[^\]\n]*\])?(?:\.\d+)?\s*:", re.MULTILINE)
_ANY_TOKEN = "<[256]>"  # noqa: S105 - a special token of llguidance's byte tokenizer, which has no others


@dataclass(frozen=True)
class GrammarReport:
    """The report on a grammar that compiles.

    Attributes:
        rules: Number of rules; 1 for kinds without rules.
        warnings: Sentences about probable mistakes.
        tokens: The tokens it names. If there are any, accepted texts depend on a model's tokenizer.
    """

    rules: int
    warnings: list[str]
    tokens: tuple[str, ...]


def check_grammar(grammar: Grammar) -> GrammarReport:
    """Compile a grammar without a model.

    Args:
        grammar: Any grammar.

    Raises:
        GrammarError: It is invalid or exceeds a limit.
    """
    matcher, tokens, warned = _compiled(grammar)
    rules, warnings = 1, [*warned, *matcher.get_grammar_warnings()]
    if grammar.kind == "gbnf":
        parsed = parse_gbnf(grammar.text)
        rules = len(parsed.nodes)
        warnings += warnings_of(parsed)
    elif grammar.kind == "lark":
        rules = len(_LARK_RULE.findall(grammar.text))
    if tokens:
        warnings.append(
            f"the grammar names tokens ({', '.join(tokens)}): that the model has them, and which answers it accepts, "
            "can only be checked with the model's tokenizer"
        )
    return GrammarReport(rules, warnings, tokens)


def accepts(grammar: Grammar, texts: list[str]) -> list[int | None]:
    """Return for each text None if the grammar accepts it, else the index of the character at which it fails.

    The index is the text's length if the grammar accepts a longer text that begins with it.

    Args:
        grammar: Any grammar that names no tokens.
        texts: Whole answers. For a JSON schema, in the format of `json.dumps`.

    Raises:
        GrammarError: The grammar is invalid, exceeds a limit or names tokens.
    """
    matcher, tokens, _ = _compiled(grammar)
    if tokens:
        raise GrammarError(
            f"{grammar.source}: the grammar names tokens ({', '.join(tokens)}), so that which texts it accepts can "
            "only be checked with the model's tokenizer; check its other rules without them"
        )
    return [_failing(matcher.deep_copy(), text, grammar.source) for text in texts]


def _failing(matcher: LLMatcher, text: str, source: str) -> int | None:
    content = text.encode()
    taken = matcher.try_consume_tokens(list(content))  # the ids of this tokenizer are the bytes
    if matcher.is_error():
        raise run_failure(matcher.get_error(), source=source)
    if taken == len(content):
        return None if matcher.is_accepting() else len(text)
    # If only its first bytes were accepted, a character fails as a whole.
    return len(content[:taken].decode(errors="ignore"))


def _compiled(grammar: Grammar) -> tuple[LLMatcher, tuple[str, ...], tuple[str, ...]]:
    """Return a matcher on bytes, the tokens that the grammar names, and its warnings.

    One special token stands for all that are named.
    """
    tokens: dict[str, None] = {}

    def stand_in(token: str) -> str:
        tokens[token] = None
        return _ANY_TOKEN

    definition = to_llguidance(grammar, DEFAULT, lambda lark: replace_tokens(lark, stand_in), exact=True)
    matcher = compile_matcher(definition.text, _byte_tokenizer(), grammar, DEFAULT)
    return matcher, tuple(tokens), definition.warnings


@cache
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
