"""`tokenizer.json`: one that loads writes and reads texts, or it is refused."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from attempts import refusing
from mutations import bytes_changed, json_changed, mutated
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hivellm_ort.errors import GrammarError, InferenceError, LoadError
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.text.tokenizer import TextTokenizer

WORDS = [
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model", "type", "BPE", "WordLevel", "Unigram", "WordPiece", "vocab", "merges", "Sequence", "Replace", "Prepend",
    "NFC", "NFKC", "Lowercase", "Strip", "Precompiled", "ByteLevel", "Metaspace", "Split", "Digits", "Whitespace",
    "Punctuation", "Regex", "String", "pattern", "content", "behavior", "invert", "Isolated",
    "Removed", "MergedWithNext",
    "normalizers", "pretokenizers", "decoders", "Fuse", "ByteFallback", "byte_fallback", "fuse_unk", "unk_token",
    "ignore_merges", "id", "special", "normalized", "lstrip", "rstrip", "single_word", "dropout", "a",
    "ab", "<|im_end|>",
    "(a+)+$", "(?=a)", "(a|a)*b", "", "\\p{L}+", "prepend", "add_prefix_space", "TemplateProcessing", "strategy",
    "max_length", "LongestFirst", "continuing_subword_prefix", "end_of_word_suffix", "Fixed", "pad_id",
]  # fmt: skip
_WAYS = (json_changed(WORDS), json_changed(WORDS), json_changed(WORDS), bytes_changed)
_FOLDER = Path(tempfile.mkdtemp(prefix="hivellm-fuzz-"))
_TEXTS = ("ab a <|im_end|> 'b", "a" * 40, "", "é\u0301 東京 1234 \U0001f642\n")


def samples() -> list[bytes]:
    """Small tokenizers of the families in use."""
    tokens = {token: place for place, token in enumerate(["<unk>", "a", "b", "ab", "▁", "▁a", "<0x41>", "Ġ"])}
    level = Tokenizer(models.BPE(tokens, [("a", "b")]))
    level.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}|a+"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    level.decoder = decoders.ByteLevel()
    blank = Tokenizer(models.BPE(tokens, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    blank.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    blank.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    scored = Tokenizer(models.Unigram([(token, -1.0 * place) for token, place in tokens.items()], 0))
    scored.normalizer = normalizers.NFKC()
    scored.pre_tokenizer = pre_tokenizers.Metaspace()
    for tokenizer in (level, blank, scored):
        tokenizer.add_special_tokens(["<|im_end|>"])
    return [tokenizer.to_str().encode() for tokenizer in (level, blank, scored)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another tokenizer."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Load it, ask it all there is to ask, and make a grammar's vocabulary of it."""
    (_FOLDER / "tokenizer.json").write_bytes(data)
    with refusing(LoadError):
        tokenizer = TextTokenizer.from_folder(_FOLDER)
        for text in _TEXTS:
            with refusing(InferenceError):
                ids = tokenizer.encode(text)
                tokenizer.decode(ids)
                tokenizer.markers(text)
                tokenizer.encode_named(text)
        with refusing(InferenceError):
            assert isinstance(tokenizer.prefix, str)
            assert all(isinstance(one, bytes) for one in tokenizer.token_bytes)
        with refusing(GrammarError):
            compiler = GrammarCompiler(tokenizer.to_json, min(tokenizer.vocab_size, 1000) + 8)
            compiler.compile(Grammar.regex("[ab]*"), end_token_ids=[*tokenizer.special_ids][:2] or [0])
        json.loads(tokenizer.to_json())
