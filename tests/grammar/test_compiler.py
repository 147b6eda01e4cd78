"""Compiling grammars of every kind for a tokenizer: what is built once, kept, copied and refused."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from walking import END, PADDING, allowed, answer, compiled, small_tokenizer, text_of, token, width

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar import compiler as compiler_module
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.limits import GrammarLimits

GBNF = 'root ::= "a" digit{2,3} # a comment\r\ndigit ::= [0-9]'


def compiler_of(tokenizer: Tokenizer, extra: int = 8) -> GrammarCompiler:
    """Return a compiler for a tokenizer, with some rows of logits that no token has."""
    return GrammarCompiler(tokenizer.to_str, tokenizer.get_vocab_size() + extra)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.gbnf(GBNF), r"a\d{2,3}"),
        (Grammar.lark('start: "a" DIGIT+\nDIGIT: /[0-9]/'), r"a\d+"),
        (Grammar.regex("a[0-9]{2}"), r"a\d{2}"),
        (Grammar.regex("^a[0-9]{2}$"), r"a\d{2}"),
        (Grammar.regex("a|bc"), r"a|bc"),
        (Grammar.json_schema({"enum": ["a", 1]}), r'"a"|1'),
        (Grammar.choice(["yes", "no"]), r"yes|no"),
    ],
)
def test_answers_of_every_kind(grammar: Grammar, pattern: str) -> None:
    """A whole answer matches the grammar, from its first character to its last."""
    for seed in range(5):
        assert re.fullmatch(pattern, text_of(answer(compiled(grammar), random.Random(seed))))


CHOICES = [
    ["a"],
    ["a", "ab", "abc"],
    ["", "a"],
    [""],
    ["x", "x"],
    ['"', "\\", "\n", "\t", "\x00", "\x7f", "/a/", "// b", "# c", "a|b", "(", "é", "🙂", "\u2028"],
    ["<think>", "<[5]>", "%json {}", "start: a", "\\u0041", "{}"],
]


@pytest.mark.parametrize("options", CHOICES)
def test_every_option_of_a_choice_can_be_chosen(options: list[str]) -> None:
    """Every option is reached token by token, whatever it is made of, and nothing else is."""
    for option in options:
        constraint = compiled(Grammar.choice(options))
        for char in option:
            for piece in small_tokenizer().encode(char, add_special_tokens=False).ids:
                # Where one continuation is left it is spelt with other tokens.
                if constraint.validate_tokens([piece]):
                    constraint.accept(piece)
        assert constraint.complete
    for seed in range(10):
        assert text_of(answer(compiled(Grammar.choice(options)), random.Random(seed))) in options


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Grammar.choice("abc"), TypeError, "must be a sequence of strings"),
        (lambda: Grammar.choice(["a", 1]), TypeError, "choice[1] is int"),  # type: ignore[list-item]
        (lambda: Grammar.choice([]), GrammarError, "choice is empty"),
        (lambda: Grammar.choice(["\ud800"]), GrammarError, "lone surrogate"),
        (lambda: Grammar.gbnf(b"root"), TypeError, "text of a grammar is bytes"),  # type: ignore[arg-type]
        (lambda: Grammar.regex("\udcff"), GrammarError, "lone surrogate"),
        (lambda: Grammar("bnf", "a"), ValueError, "kind is 'bnf': it must be one of gbnf,"),  # type: ignore[arg-type]
        (lambda: Grammar("choice", '["a", 2]'), TypeError, "[1] is int"),
        (lambda: Grammar("choice", '{"a": 2}'), TypeError, "is dict"),
        (lambda: Grammar("choice", "[", "f.json"), GrammarError, "f.json, line 1, column 2: not JSON"),
    ],
)
def test_what_can_be_no_grammar(make: Any, error: type[Exception], said: str) -> None:
    """Wrong types and texts are refused when the grammar is made."""
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar.gbnf("root ::= a", source="g.gbnf"), "g.gbnf: line 1, column 10"),
        (Grammar.lark("start: \n  foo", source="g.lark"), "g.lark, line 2"),
        (Grammar.lark("start: bar"), 'grammar, line 1, column 8: unknown name: "bar"'),
        (Grammar.lark("start: <nothere>"), "the token <nothere>, which this model's tokenizer does not have"),
        (Grammar.lark("start: <[99999]>"), "Token range end too large"),
        (Grammar.lark(f"start: <[{width() - 1}]>"), "no token may come next"),
        (Grammar.lark("start: A\nA: /a/ & /b/"), "no token may come next"),
        (Grammar.regex("a(b"), "unclosed group"),
        (Grammar.regex("(?<=a)b"), "look-around"),
        (Grammar.regex(r"(a)\1"), "backreferences"),
    ],
)
def test_a_wrong_grammar_is_refused_when_it_is_compiled(grammar: Grammar, said: str) -> None:
    """The error says where the grammar is from, what is wrong and what to do; nothing is kept."""
    for _ in range(2):
        with pytest.raises(GrammarError) as caught:
            compiled(grammar)
        assert said in str(caught.value)
        assert str(caught.value).startswith(grammar.source)


def test_the_place_of_an_error_in_lark() -> None:
    """Line and column are the user's own."""
    with pytest.raises(GrammarError) as caught:
        compiled(Grammar.lark('start: a\na: "b"\n  nope'))
    assert (3, 7) == (caught.value.line, caught.value.column)


def test_a_grammar_is_known_by_kind_and_text() -> None:
    """Where it is from makes no difference, its kind does."""
    one, other = Grammar.regex("a", source="x"), Grammar.regex("a", source="y")
    assert (one, one.digest) == (other, other.digest)
    assert 64 == len(one.digest)
    assert len({one.digest, Grammar.lark("a").digest, Grammar.regex("b").digest}) == 3


def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar is translated once for the same limits, and the tokenizer read once, when first needed."""
    calls: list[str] = []
    to_llguidance = compiler_module.to_llguidance

    def counted(*args: Any, **options: Any) -> str:
        calls.append("translate")
        return to_llguidance(*args, **options)

    def read() -> str:
        calls.append("read")
        text: str = small_tokenizer().to_str()
        return text

    monkeypatch.setattr(compiler_module, "to_llguidance", counted)
    compiler = GrammarCompiler(read, width())
    assert [] == calls
    for grammar in (Grammar.regex("a"), Grammar.regex("a", source="other"), Grammar.regex("b")):
        compiler.compile(grammar, end_token_ids=[END])
    assert ["read", "translate", "translate"] == calls
    compiler.compile(Grammar.regex("a"), end_token_ids=[], limits=GrammarLimits(step_max_items=9_999))
    assert 3 == calls.count("translate")


def test_the_least_recently_used_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four grammars are kept, those used last."""
    compiler = GrammarCompiler(small_tokenizer().to_str, width())
    calls: list[str] = []
    to_llguidance = compiler_module.to_llguidance

    def counted(grammar: Grammar, *args: Any, **options: Any) -> str:
        calls.append(grammar.text)
        return to_llguidance(grammar, *args, **options)

    monkeypatch.setattr(compiler_module, "to_llguidance", counted)

    def use(text: str) -> None:
        compiler.compile(Grammar.regex(text), end_token_ids=[END])

    for number in range(64):
        use(f"a{number}")
    use("a0")  # now used after a1
    use("new")
    calls.clear()
    for text in ("a0", "new", "a2", "a1"):
        use(text)
    assert ["a1"] == calls


def test_the_tokenizer_is_built_once_by_many_threads() -> None:
    """Threads that begin together wait for one tokenizer."""
    reads: list[None] = []
    found: list[list[int]] = []

    def read() -> str:
        reads.append(None)
        time.sleep(0.05)
        text: str = small_tokenizer().to_str()
        return text

    compiler = GrammarCompiler(read, width())

    def run() -> None:
        found.append(allowed(compiler.compile(Grammar.regex("ab"), end_token_ids=[END])))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (1, [[token("a")]] * 8) == (len(reads), [found[i][:1] for i in range(8)])


@pytest.mark.parametrize("text", ["", "{}", "[]", "not JSON", '{"model": {"vocab": {}}}'])
def test_a_tokenizer_that_cannot_be_read(text: str) -> None:
    """It is an error of the grammar, since all but grammars work without."""
    with pytest.raises(GrammarError, match=r"^tokenizer\.json: .*generate without a grammar"):
        GrammarCompiler(lambda: text, 100).compile(Grammar.regex("a"), end_token_ids=[1])


def test_a_tokenizer_whose_texts_llguidance_mistakes() -> None:
    """Texts other than the tokenizer's would make masks of another language: refused."""
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate("Abckey")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(GrammarError, match=r"^tokenizer\.json: "):
        compiler_of(tokenizer).compile(Grammar.regex("a"), end_token_ids=[0])


def test_bytes_behind_other_decoders_are_bytes() -> None:
    """A byte-level tokenizer whose decoder begins with steps of another family, as SmolLM2's may."""
    tokenizer = Tokenizer.from_str(small_tokenizer().to_str())
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.ByteLevel()]
    tokenizer.decoder = decoders.Sequence(steps)
    constraint = compiler_of(tokenizer).compile(Grammar.choice([' "é', ' "🙂']), end_token_ids=[END])
    tokens = answer_of(constraint, tokenizer)
    assert tokenizer.decode(tokens) in (' "é', ' "🙂')


def answer_of(constraint: Any, tokenizer: Tokenizer, extra: int = 8) -> list[int]:
    """Return the tokens of an answer, always the first that is allowed."""
    taken: list[int] = []
    while not constraint.finished:
        taken.append(allowed(constraint, tokenizer.get_vocab_size() + extra)[0])
        constraint.accept(taken[-1])
    return taken


def _metaspace() -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    vocabulary = {one: index for index, one in enumerate(tokens)}
    model = models.BPE(
        vocabulary, [("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("text", ["ab a", " a", "é b", "</s>", "<s>ab", "<unk>", "<0x41>"])
def test_special_tokens_inside_the_vocabulary(text: str) -> None:
    """Those of Llama 2 and Gemma are entries of the model's own vocabulary, and no text either."""
    tokenizer = _metaspace()
    constraint = compiler_of(tokenizer).compile(Grammar.choice([text]), end_token_ids=[2])
    tokens = answer_of(constraint, tokenizer)
    assert text == tokenizer.decode(tokens, skip_special_tokens=False)
    assert not {0, 1, 2} & set(tokens)


def test_unigram_vocabularies() -> None:
    """The special tokens of a Unigram model are renamed too."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [
        ("▁", -1.0),
        ("a", -1.0),
        ("b", -1.0),
        ("ab", -1.5),
        ("<", -2.0),
        (">", -2.0),
        ("/", -2.0),
        ("s", -2.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    constraint = compiler_of(tokenizer).compile(Grammar.choice(["ab</s>"]), end_token_ids=[1])
    tokens = answer_of(constraint, tokenizer)
    assert ("ab</s>", False) == (tokenizer.decode(tokens, skip_special_tokens=False), 1 in tokens)


def test_a_tokenizer_file_written_with_other_spaces() -> None:
    """What is changed in the tokenizer's text is found however it is laid out."""
    for text in (
        json.dumps(json.loads(small_tokenizer().to_str()), indent=2),
        json.dumps(json.loads(small_tokenizer().to_str()), sort_keys=True),
    ):
        compiler = GrammarCompiler(lambda text=text: text, width())  # type: ignore[misc]
        constraint = compiler.compile(Grammar.choice(["<think>"]), end_token_ids=[END])
        assert token("<think>") not in answer_of(constraint, small_tokenizer(), PADDING)
