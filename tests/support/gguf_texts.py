"""Random texts for comparing two tokenizers, with everything that tokenizers split differently."""

# ruff: noqa: RUF001 - that they are confused is why they are here
from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["PARTS", "texts"]

_WORDS = """
the quick brown fox SELECT customer_id FROM orders WHERE status = shipped I'm you're we've they'll she'd it's
DON'T CAN'T HeLLo WORLD camelCase snake_case TitleCase iPhone naïve café Straße GROẞ ﬁne Œuvre ÉCOLE ǅ ǈ ʰ ª º
Привет мир ЗДРАВСТВУЙТЕ Ελληνικά ΚΑΛΗΜΕΡΑ שלום עולם مرحبا بالعالم हिन्दी में नमस्ते বাংলা ภาษาไทย ខ្មែរ မြန်မာ
日本語 ひらがな カタカナ ｶﾀｶﾅ 漢字 简体中文 繁體 한국어 조선말 ㄅㄆㄇ Ὠκεανός Հայերեն ქართული አማርኛ ᏣᎳᎩ ᚠᚢᚦ 𝔘𝔫𝔦 𐐀𐐨 ꙮ
"""
_NUMBERS = """
0 7 42 123 1234 12345 1234567890 3.14159 1,000,000 1e-05 0xFF 2024-01-31 ½ ² Ⅻ ٣٤٥ १२३ 五 １２３ 𝟗 ①
"""
_CODE = (
    "def f(x):\n    return x**2\n",
    "\tif (a && b || !c) { x += y[i]->z; } // note\n",
    '{"key": [1, 2.5, null], "a": "b\\n"}',
    "SELECT COUNT(*) FROM t WHERE a <= 3 AND b <> 'x''y';",
    '<div class="a">&nbsp;</div>',
    "a=b;c==d!=e===f<=>g::h..i...j??k?.l",
    "C:\\Users\\x\\file.txt /usr/bin/env https://a.b/c?d=e&f=%20#g",
    "MATCH (n:Person)-[:KNOWS]->(m) RETURN n.name",
    "```python\nprint('hi')\n```\n\n- **bold** _it_ `code`\n1. x\n",
)
_SPACES = (
    *(" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\n  \n", " " * 17, "\n" * 5),
    *("\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\u0085", "\x0b", "\x0c", "\x1c"),
)
_MARKS = ("e\u0301", "a\u0308\u0323", "क्ष", "ำ", "\u0301", "Z͑ͫ̓ͪ̂a̴̵", "ﷺ", "ｆｕｌｌ", "\u202eabc\u202c")
_SIGNS = "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ © ™ → ∑ 𝄞 \ufffd \ufeff € … “q” — ¿ 。 ！"
_CONTROLS = (
    "\x00",
    "\x04",
    "'\x14.",
    "\x01",
    "\x1b[0m",
    "\x7f",
    "\x80",
    "\x9f",
    "\ue000",
    "\U000e0001",
    "\U0010ffff",
)
_MARKUP = "< > <| |> <0x0A> [INST] <|im_sta ▁ ▁▁ Ġ Ċ ' 'S 'ſ ’s _ ## -- (( )) $^|~`+"

PARTS: tuple[Sequence[str], ...] = (
    *(
        _WORDS.split(),
        _NUMBERS.split(),
        _CODE,
        _SPACES,
        _MARKS,
        _SIGNS.split(" "),
        _CONTROLS,
        _MARKUP.split(),
    ),
)
"""The parts of the texts, by kind."""


def texts(count: int, *, special: Sequence[str] = (), words: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Different texts, short and long; the first ones are each of the parts alone.

    Args:
        count: How many.
        special: Texts of special tokens, put between others.
        words: More parts, such as tokens of the vocabulary.
        seed: Of the choice.
    """
    pick = random.Random(seed)
    groups = [*PARTS, *(list(group) for group in (special, words) if group)]
    found = dict.fromkeys(["", *special, *(part for group in PARTS for part in group)])
    while len(found) < count:
        parts = []
        for _ in range(pick.randrange(1, 14)):
            parts.append(pick.choice(pick.choice(groups)))
            parts.append(pick.choice(("", "", " ", " ", pick.choice(_SPACES))))
        found["".join(parts)] = None
    return list(found)[:count]
