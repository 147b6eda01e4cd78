"""Recognises texts with llguidance and makes texts to recognise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer
from support.earley import Chars, Grammar, Rules

from hivellm_ort.grammar.gbnf import parse_gbnf
from hivellm_ort.grammar.lark import to_lark
from hivellm_ort.grammar.normalise import normalise

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.gbnf"))
REAL = (
    Path(__file__).parents[2].parent / "shared" / "hivellm" / "grammars"
)  # published grammars, if they are here

_ODD = "\x00\x7f é€\u2028\ud7ff\ue000\uffff\U0001f600\U0010ffff"
_ASCII = [chr(code) for code in range(32, 127)] + ["\n", "\t", "\r"]


def text_of(path: Path) -> str:
    """Return a file's text with its line ends as they are."""
    return path.read_bytes().decode()


@cache
def bytes_tokenizer() -> LLTokenizer:
    """Return the tokenizer whose tokens are the bytes."""
    return LLTokenizer("byte")


def matcher(lark: str, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """Return a matcher for a Lark grammar."""
    made = LLMatcher(tokenizer or bytes_tokenizer(), lark, log_level=0)
    assert not made.is_error(), made.get_error()[:300]
    return made


def lark_of(gbnf: str, *, exact: bool = True) -> str:
    """Return the Lark grammar of a GBNF text."""
    return to_lark(normalise(parse_gbnf(gbnf)), exact=exact)


def accepts(compiled: LLMatcher, text: str) -> bool:
    """Say whether the whole text is in the language; the matcher is as before afterwards."""
    data = list(text.encode())
    taken = compiled.try_consume_tokens(data)
    accepted = taken == len(data) and compiled.is_accepting()
    assert not compiled.is_error(), compiled.get_error()[:300]
    assert compiled.reset()
    return accepted


def members(grammar: Grammar, random_: random.Random, budget: int = 24) -> Iterator[str]:
    """Yield texts of the language, derived at random; beyond the budget of steps each is ended the short way."""
    heights = _heights(grammar.rules)
    while True:
        out: list[str] = []
        todo: list[str | Chars] = ["root"]
        steps = 0
        limit = random_.randrange(budget * 2)
        while todo:
            symbol = todo.pop()
            if isinstance(symbol, Chars):
                out.append(_character(symbol, random_))
                continue
            steps += 1
            bodies = grammar.rules[symbol]
            if steps > limit:
                lowest = min(_height(body, heights) for body in bodies)
                bodies = [body for body in bodies if _height(body, heights) == lowest]
            todo.extend(reversed(random_.choice(bodies)))
        yield "".join(out)


def mutated(text: str, random_: random.Random) -> str:
    """Return the text with some of its characters changed."""
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        at = random_.randrange(len(text) + 1)
        char = random_.choice(text) if text and random_.random() < 0.7 else random_.choice([*_ASCII, *_ODD])
        end = min(len(text), at + random_.choice((1, 1, 2, 5)))
        text = random_.choice(
            (
                text[:at] + text[end:],
                text[:at] + char + text[at:],
                text[:at] + char + text[at + 1 :],
                text[:at] + text[at : at + 2][::-1] + text[at + 2 :],
                text[:end] + text[at:],
                text[:at],
                text.replace(" ", "", 1),
            )
        )
    return text


def _heights(rules: Rules) -> dict[str, int]:
    """Return how many rules deep the shortest derivation of each name is."""
    heights: dict[str, int] = {}
    before = -1
    while before != len(heights):
        before = len(heights)
        for name, bodies in rules.items():
            known = [body for body in bodies if all(isinstance(s, Chars) or s in heights for s in body)]
            if known and name not in heights:
                heights[name] = 1 + min(_height(body, heights) for body in known)
    return heights


def _height(body: tuple[str | Chars, ...], heights: dict[str, int]) -> int:
    """Return how many rules deep the shortest derivation of a production is."""
    return max((heights[symbol] for symbol in body if isinstance(symbol, str)), default=0)


def _character(chars: Chars, random_: random.Random) -> str:
    """Return a character of a set: mostly a plain one, now and then an odd one."""
    pool = [char for char in (_ODD if random_.random() < 0.1 else _ASCII) if char in chars]
    if pool:
        return random_.choice(pool)
    low, high = random_.choice(chars.ranges)
    return chr(random_.randint(ord(low), ord(high)))
