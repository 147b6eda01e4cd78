"""How llama.cpp splits a text into words before it merges bytes, by `tokenizer.ggml.pre`.

Names and meanings are those of `llama-vocab.cpp`, commit 0c1e57098. This table has the names that Llama, Mistral,
Qwen2 and Qwen3 models use. The expressions give the words of llama.cpp. For `tekken`, `gpt-4o` and `deepseek-llm`
these differ from the original tokenizer in some texts.
"""

# ruff: noqa: RUF001 - ranges of characters of many scripts
from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRE_TOKENIZERS", "PreTokenizer"]


@dataclass(frozen=True)
class PreTokenizer:
    """Regular expressions that split a text, one after the other. Matches and the text between them are pieces.

    Attributes:
        expressions: In the syntax of `tokenizers` (Oniguruma).
        whole_words: Whether a word that is a token is used without merges.
        add_bos: Whether the begin token is put before a text, if the file does not say so.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(letters: str, numbers: str, tail: str = r"[\r\n]*") -> str:
    return rf"{_CONTRACTIONS}|{letters}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+{tail}|{_SPACES}"


_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = _words(_LETTERS, r"\p{N}{1,3}")
_QWEN2 = _words(_LETTERS, r"\p{N}")
# llama.cpp knows upper and lower case only in ASCII: other letters are both.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = tuple(rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{first}{_LOWER}{second}" for first, second in ("*+", "+*"))
_TEKKEN = rf"{'|'.join(_CASED)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{'|'.join(f'{cased}{_CONTRACTIONS}?' for cased in _CASED)}"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = rf"{_CONTRACTIONS}|{_MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_SEED_CODER = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES,
)
_CJK = r"[[一-龥ࠀ-一가-퟿]&&[^\s]]+"  # this range has white space, which must not match
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_DEFAULT = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# Letters with upper and lower case, as the original tokenizer lists them.
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-"
    "ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_VIKING = (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")
_MINICPM5 = (r"\p{N}{1,3}", _words(_LETTERS, r"\p{N}+"))

_FORMS: tuple[tuple[PreTokenizer, tuple[str, ...]], ...] = (
    (PreTokenizer(_DEFAULT), ("default",)),
    (
        PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True),
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"),
    ),
    (PreTokenizer((_LLAMA3,)), ("smaug-bpe",)),
    (PreTokenizer((_QWEN2,)), ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez")),
    (PreTokenizer((_QWEN35,)), ("qwen35",)),
    (PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True), ("tekken",)),
    (PreTokenizer((_GPT4O,)), ("gpt-4o",)),
    (PreTokenizer((r"\p{N}", _GPT2)), ("smollm", "starcoder", "refact", "minerva-7b", "mellum2")),
    (PreTokenizer((_GPT2,)), ("gpt-2", "trillion", "a.x-4.0", "mellum", "granite-docling")),
    (PreTokenizer((_SEED_CODER,)), ("seed-coder",)),
    (PreTokenizer(_MINICPM5, whole_words=True), ("minicpm5",)),
    (PreTokenizer(_VIKING), ("viking",)),
    (PreTokenizer(_DEEPSEEK_LLM), ("deepseek-llm",)),
    (PreTokenizer(_DEEPSEEK_CODER), ("deepseek-coder",)),
    (PreTokenizer(_DEEPSEEK_V3), ("deepseek-v3",)),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: form for form, names in _FORMS for name in names}
"""By the value of `tokenizer.ggml.pre`."""
