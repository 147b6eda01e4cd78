"""From a grammar to the constraint of an answer, for the tokenizer of one base."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import asdict
from threading import Lock
from typing import TYPE_CHECKING

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.failures import compile_failure
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import DEFAULT, GrammarLimits
from hivellm_ort.grammar.matcher import MatcherConstraint, fill_masks
from hivellm_ort.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from hivellm_ort.grammar.constraint import Constraint

__all__ = ["GrammarCompiler", "compile_matcher", "to_llguidance"]

_KEPT = 64
_OWN_LIMITS = ("max_bytes", "max_rules", "max_depth", "max_repetition", "max_expanded")
# As json.dumps writes, so that what lies between two values is forced.
_JSON_STYLE: JsonCompileOptions = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}


class GrammarCompiler:
    """Compiles grammars for one base. For use by any number of threads.

    llguidance's tokenizer is built once, when the first grammar is compiled: it takes a second. What was made of the
    last 64 grammars in use is kept.

    Args:
        read_tokenizer: Returns the content of the base's `tokenizer.json`; called once at most.
        width: Width of the model's logits.
    """

    def __init__(self, read_tokenizer: Callable[[], str], width: int) -> None:
        self._read_tokenizer = read_tokenizer
        self._width = width
        self._vocabulary: Vocabulary | None = None
        self._building = Lock()
        self._definitions: OrderedDict[tuple[str, GrammarLimits], str] = OrderedDict()
        self._keeping = Lock()

    def compile(
        self,
        grammar: Grammar,
        *,
        end_token_ids: Collection[int],
        closing_token_ids: Collection[int] = (),
        limits: GrammarLimits = DEFAULT,
    ) -> Constraint:
        """Return the constraint of an answer that is about to begin.

        Args:
            grammar: What the answer may look like.
            end_token_ids: Tokens that end the answer: allowed exactly when the grammar is complete.
            closing_token_ids: Tokens of text that end the answer too when the grammar is complete, such as a stop
                string of one token. They are allowed then, and else where the grammar allows them.
            limits: Bounds on the grammar and on the work of its parser.

        Raises:
            GrammarError: If the grammar is wrong, exceeds a limit or allows no answer at all, or if llguidance
                cannot read the tokenizer.
        """
        vocabulary = self._built()
        key = (grammar.digest, limits)
        with self._keeping:
            definition = self._definitions.get(key)
        if definition is None:
            definition = to_llguidance(grammar, limits, vocabulary.named, exact=False)
        # Anew for each answer, in a millisecond or two: copies of a matcher share its lexer, and what one answer
        # takes of its limits the next ones lack.
        constraint = MatcherConstraint(
            compile_matcher(definition, vocabulary.tokenizer, grammar, limits),
            vocabulary,
            end_token_ids=end_token_ids,
            closing_token_ids=closing_token_ids,
            source=grammar.source,
        )
        # Limits may be reached at the first token, and some grammars have none: better now than in an answer.
        fill_masks([constraint])
        constraint.require_token()
        with self._keeping:
            self._definitions[key] = definition
            self._definitions.move_to_end(key)
            if len(self._definitions) > _KEPT:
                self._definitions.popitem(last=False)
        return constraint

    def _built(self) -> Vocabulary:
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._read_tokenizer(), self._width)
            return self._vocabulary


def to_llguidance(
    grammar: Grammar, limits: GrammarLimits, name_tokens: Callable[[str], str], *, exact: bool
) -> str:
    """Return the grammar in llguidance's own form.

    Args:
        grammar: Any grammar.
        limits: Bounds on its text, rules and repetitions.
        exact: Whether every text of the language is allowed. A text has many derivations where blanks may be left out
            (`SELECTaFROMt`), too many for a large vocabulary; without this, words that run into each other are left
            out, and nothing is added.
        name_tokens: Changes the names of tokens in a Lark text into those that the tokenizer has for them.

    Raises:
        GrammarError: If the text is too long, GBNF is wrong, or `name_tokens` raises it.
    """
    from llguidance import LLMatcher

    size = len(grammar.text.encode())
    if size > limits.max_bytes:
        raise GrammarError(
            f"{grammar.source}: the grammar has {size} bytes, more than GrammarLimits.max_bytes "
            f"({limits.max_bytes}); shorten it, or raise the limit"
        )
    if grammar.kind == "json_schema":
        try:
            return LLMatcher.grammar_from_json_schema(grammar.text, defaults=_JSON_STYLE)
        except ValueError as error:
            raise compile_failure(str(error), kind=grammar.kind, source=grammar.source) from error
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "choice":
        options = (json.dumps(option) for option in json.loads(grammar.text))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(options))
    lark = grammar.text
    try:
        if grammar.kind == "gbnf":
            # Slow to import, and most answers are under no grammar.
            from hivellm_ort.grammar.gbnf import parse_gbnf
            from hivellm_ort.grammar.lark import to_lark
            from hivellm_ort.grammar.normalise import normalise

            lark = to_lark(normalise(parse_gbnf(grammar.text, limits=limits)), exact=exact)
        return LLMatcher.grammar_from_lark(name_tokens(lark))
    except GrammarError as error:
        raise GrammarError(f"{grammar.source}: {error}", line=error.line, column=error.column) from error


def compile_matcher(
    definition: str, tokenizer: LLTokenizer, grammar: Grammar, limits: GrammarLimits
) -> LLMatcher:
    """Return llguidance's matcher of a grammar.

    Args:
        definition: The grammar as `to_llguidance` returns it.
        tokenizer: What it is compiled for.
        grammar: For messages.
        limits: Bounds on the parser's work.

    Raises:
        GrammarError: If llguidance does not compile it.
    """
    from llguidance import LLMatcher, LLParserLimits

    fuel = {name: value for name, value in asdict(limits).items() if name not in _OWN_LIMITS}
    # Verbose errors would write the whole grammar and answer into the message.
    matcher = LLMatcher(
        tokenizer, definition, log_level=0, limits=LLParserLimits(**fuel, verbose_errors=False)
    )
    if matcher.is_error():
        raise compile_failure(matcher.get_error(), kind=grammar.kind, source=grammar.source)
    return matcher
