"""Rules are printed in llguidance's Lark without a change of their language."""

from __future__ import annotations

import random
from itertools import product

import pytest
from matching import accepts, lark_of, matcher
from support.earley import read

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.lark import to_lark
from hivellm_ort.grammar.normalise import normalise

SHORT = ["".join(letters) for length in range(6) for letters in product("ab ", repeat=length)]


def random_grammar(random_: random.Random) -> str:
    """Return a small grammar over `a`, `b` and blanks, as ambiguous as can be."""
    names = ["root", *(f"r{number}" for number in range(random_.randrange(4)))]

    def item(depth: int) -> str:
        kinds = [f'"{"".join(random_.choices("ab ", k=random_.randrange(4)))}"', random_.choice(names)]
        kinds.append(random_.choice(["[ab]", "[a ]", "[^a]", "[ ]", "."]))
        if depth:
            kinds.append(f"({alternatives(depth - 1)})")
        marks = ["", "", "", "", "", "?", "*", "+", "{2}", "{1,2}", "{,2}", "{2,}", "?*"]
        return random_.choice(kinds) + random_.choice(marks)

    def alternatives(depth: int) -> str:
        sizes = random_.choice(([1], [2], [3], [1, 2], [2, 1], [1, 1, 1]))
        return " | ".join(" ".join(item(depth) for _ in range(size)) for size in sizes)

    return "\n".join(f"{name} ::= {alternatives(2)}" for name in names)


@pytest.mark.parametrize("seed", range(20))
def test_random_grammars(seed: int) -> None:
    """Every short text is accepted by the exact grammar if it is in the language, and by both only then."""
    random_ = random.Random(seed)
    compared = 0
    while compared < 5:
        gbnf = random_grammar(random_)
        try:
            exact, quick = matcher(lark_of(gbnf)), matcher(lark_of(gbnf, exact=False))
        except GrammarError as error:
            assert "can never end" in str(error)  # noqa: PT017
            continue
        compared += 1
        grammar = read(gbnf)
        for text in random_.sample(SHORT, 80):
            member = grammar.accepts(text)
            assert member == accepts(exact, text), (gbnf, text)
            assert member or not accepts(quick, text), (gbnf, text)


def test_terminals_where_they_are_safe() -> None:
    """Loops of characters become terminals where nothing after them could be a part of them."""
    lark = lark_of(
        'root ::= "(" item ("," item)* ")"\nitem ::= word | root\nword ::= [a-z_] [a-z0-9_]* | "\'" [^\']* "\'"'
    )
    assert "/(?:[_a-z](?:[0-9_a-z]*)|'(?:" in lark


@pytest.mark.parametrize("text", ["aaab", "ab", "b"])
def test_greedy_terminals_are_broken(text: str) -> None:
    """A loop that could take what comes after it is a rule over single characters."""
    for exact in (True, False):
        assert accepts(matcher(lark_of('root ::= [a-z]* "b" (" " root)?', exact=exact)), text)


def test_quick_grammar_keeps_blanks() -> None:
    """The quick grammar leaves out only texts whose words run into each other, and both leave out all others."""
    gbnf = """
    root ::= "GET" ws value (ws "FROM" ws value)? ws
    value ::= word | "(" root ")"
    word ::= [A-Za-z]+
    ws ::= " "*
    """
    exact, quick = matcher(lark_of(gbnf)), matcher(lark_of(gbnf, exact=False))
    for text in (
        "GET a FROM b",
        "GET  a FROM b ",
        "GETa FROM b",
        "GETa FROMb",
        "GETFROM",
        "GET(GET a)FROM b",
    ):
        assert accepts(exact, text)
        assert accepts(quick, text)
    for text in ("GET aFROM b", "GET aFROM(GET b)"):
        assert accepts(exact, text)
        assert not accepts(quick, text)
    for text in ("GET 1", "GET a FROM", "GET aFROM"):
        assert (text == "GET aFROM") == accepts(exact, text) == accepts(quick, text)


def test_quick_grammar_ends_repetitions() -> None:
    """The quick grammar leaves out another round of a repetition that only an overlong word could begin."""
    gbnf = 'root ::= "(" (word "!"?)+ root? ")"\nword ::= [a-z]+ | "if" root'
    quick = matcher(lark_of(gbnf, exact=False))
    assert [True, True, True] == [accepts(quick, text) for text in ("(a!b!)", "(ab)", "(if(x))")]


@pytest.mark.parametrize(
    "names",
    [
        ("digit1-9", "digit1_9", "DIGIT1-9"),
        ("a-b", "a_b", "A_B"),
        ("start", "ignore", "import"),
        ("T0", "g0", "r0"),
        ("1", "-", "_"),
        ("x" * 300, "x" * 300 + "y", "true"),
    ],
)
def test_names(names: tuple[str, str, str]) -> None:
    """Names that Lark does not have, or that are the same in it, are told apart."""
    first, second, third = names
    gbnf = (
        f'root ::= {first} {second} {third} root?\n{first} ::= "a"\n{second} ::= "b" root?\n{third} ::= "c"'
    )
    compiled = matcher(lark_of(gbnf))
    assert [True, True, False] == [accepts(compiled, text) for text in ("abc", "ababcc", "acb")]


@pytest.mark.parametrize(
    "char", ["/", "\\", '"', "'", "]", "^", "-", "&", "~", "#", "\n", "\0", "é", "\ud7ff", "\U0010ffff", "<"]
)
def test_every_character(char: str) -> None:
    """Each character stands for itself, in a literal and in a class, alone and in a longer terminal."""
    escaped = f"\\U{ord(char):08x}"
    for gbnf in (f'root ::= "{escaped}"', f"root ::= [{escaped}]", f'root ::= [^{escaped}]? "{escaped}"+'):
        compiled = matcher(lark_of(gbnf))
        assert accepts(compiled, char)
        assert not accepts(compiled, "x")
        assert not accepts(compiled, "")


def test_tokens() -> None:
    """Tokens are printed as llguidance writes them: by id, by text, and all but one id."""
    gbnf = 'root ::= <[65]> !<[66]>* <|tool|> "x"'
    lark = lark_of(gbnf)
    assert "start: <[65]> <[^66]>* <|tool|> T0\n" in lark
    compiled = matcher(lark)
    assert compiled.try_consume_tokens([65, 67, 68, 66]) == 3


def test_negated_token_text() -> None:
    """All tokens but one are told by the id; by the text it is an error with its line and what to do."""
    with pytest.raises(
        GrammarError, match=r"line 2, in rule 'x': !</think>.* write its id, as in !<\[1000\]>"
    ) as caught:
        lark_of("root ::= <think> x\nx ::= !</think>*")
    assert 2 == caught.value.line


def test_printing_is_stable() -> None:
    """The same grammar always gives the same text, because compiled grammars are kept by it."""
    gbnf = 'root ::= a | b\na ::= [x-z]+ b?\nb ::= "k" root | "l"'
    rules = normalise(parse_gbnf(gbnf))
    assert to_lark(rules) == to_lark(normalise(parse_gbnf(gbnf)))
