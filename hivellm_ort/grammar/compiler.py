"""From a grammar to the constraint of an answer, for the tokenizer of one base."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import asdict
from threading import Lock
from typing import TYPE_CHECKING

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.calls import CallsGrammar
from hivellm_ort.grammar.failures import compile_failure
from hivellm_ort.grammar.grammar import Definition, Grammar
from hivellm_ort.grammar.limits import DEFAULT, GrammarLimits
from hivellm_ort.grammar.matcher import MatcherConstraint, fill_masks
from hivellm_ort.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from hivellm_ort.grammar.constraint import Constraint

__all__ = ["GrammarCompiler", "compile_matcher", "to_llguidance"]

_Key = tuple[str, str, GrammarLimits]
_KEPT = 64
_OWN_LIMITS = ("max_bytes", "max_options", "max_rules", "max_depth", "max_repetition", "max_expanded")


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
        self._definitions: OrderedDict[_Key, Definition] = OrderedDict()
        self._keeping = Lock()

    def compile(
        self,
        grammar: Grammar | CallsGrammar,
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
        key = _key(grammar, limits)
        with self._keeping:
            definition = self._definitions.get(key)
        if definition is None:
            definition = _defined(grammar, limits, vocabulary)
            if isinstance(grammar, Grammar) and grammar.kind == "choice":
                _require_spelling(grammar, vocabulary)
        # Anew for each answer, in a millisecond or two: copies of a matcher share its lexer, and what one answer
        # takes of its limits the next ones lack.
        constraint = MatcherConstraint(
            compile_matcher(definition.text, vocabulary.tokenizer, grammar, limits),
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

    def warnings(
        self, grammar: Grammar | CallsGrammar, *, limits: GrammarLimits = DEFAULT
    ) -> tuple[str, ...]:
        """Return what of a grammar has no effect or is not enforced, a sentence each.

        Args:
            grammar: One that was compiled before, of which what was made is kept; else it is read anew.
            limits: As `compile`.

        Raises:
            GrammarError: As `compile`.
        """
        with self._keeping:
            definition = self._definitions.get(_key(grammar, limits))
        if definition is None:
            definition = _defined(grammar, limits, self._built())
        return definition.warnings

    def _built(self) -> Vocabulary:
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._read_tokenizer(), self._width)
            return self._vocabulary


def _defined(grammar: Grammar | CallsGrammar, limits: GrammarLimits, vocabulary: Vocabulary) -> Definition:
    """The grammar in llguidance's own form, to generate answers."""
    if isinstance(grammar, Grammar):
        return to_llguidance(grammar, limits, vocabulary.named, exact=False)
    answer = None if grammar.answer is None else _defined(grammar.answer, limits, vocabulary)
    return grammar.definition(limits, vocabulary, answer)


def _key(grammar: Grammar | CallsGrammar, limits: GrammarLimits) -> _Key:
    """Under what a translation is kept; the warnings of a JSON schema name its source."""
    return grammar.digest, grammar.source if grammar.kind == "json_schema" else "", limits


def to_llguidance(
    grammar: Grammar, limits: GrammarLimits, name_tokens: Callable[[str], str], *, exact: bool
) -> Definition:
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
        # Slow to import, and most answers are under no grammar.
        from hivellm_ort.grammar.schema.compiled import compile_schema

        try:
            return compile_schema(grammar.text, source=grammar.source, lenient=grammar.lenient)
        except ValueError as error:
            if isinstance(error, GrammarError):
                raise
            raise compile_failure(str(error), kind=grammar.kind, source=grammar.source) from error
    if grammar.kind == "regex":
        return Definition(LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind == "choice":
        return Definition(LLMatcher.grammar_from_lark(_choice(grammar, limits)))
    lark = grammar.text
    try:
        if grammar.kind == "gbnf":
            from hivellm_ort.grammar.gbnf import parse_gbnf
            from hivellm_ort.grammar.lark import to_lark
            from hivellm_ort.grammar.normalise import normalise

            lark = to_lark(normalise(parse_gbnf(grammar.text, limits=limits)), exact=exact)
        return Definition(LLMatcher.grammar_from_lark(name_tokens(lark)))
    except GrammarError as error:
        raise GrammarError(f"{grammar.source}: {error}", line=error.line, column=error.column) from error


def _choice(grammar: Grammar, limits: GrammarLimits) -> str:
    """The texts as one terminal of Lark: as many rules they would be as many items in each row of the parser."""
    options = json.loads(grammar.text)
    if len(options) > limits.max_options:
        raise GrammarError(
            f"{grammar.source}: it has {len(options)} options, more than GrammarLimits.max_options "
            f"({limits.max_options}); give fewer, or a regex or grammar that describes them"
        )
    texts = " | ".join(json.dumps(option) for option in options if option)
    if not texts:
        return 'start: ""'
    empty = '"" | ' if "" in options else ""
    return f"start: {empty}CHOICE\nCHOICE: {texts}"


def _require_spelling(grammar: Grammar, vocabulary: Vocabulary) -> None:
    """Raise GrammarError for an option that has characters that no tokens make."""
    options = json.loads(grammar.text)
    if vocabulary.spells("\0".join(options)):  # nearly always, and soon told
        return
    for index, option in enumerate(options):
        if not vocabulary.spells(option):
            shown = option if len(option) <= 60 else f"{option[:59]}…"
            raise GrammarError(
                f"{grammar.source}[{index}]: this model has no tokens that make {shown!r}; leave it out, or write it "
                "with other characters"
            )


def compile_matcher(
    definition: str, tokenizer: LLTokenizer, grammar: Grammar | CallsGrammar, limits: GrammarLimits
) -> LLMatcher:
    """Return llguidance's matcher of a grammar.

    Args:
        definition: The text of what `to_llguidance` returns.
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
