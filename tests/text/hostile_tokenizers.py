"""Tokenizers that would take time or memory beyond all bounds, or lie, as the text of their files."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

LETTERS = {chr(97 + index): index for index in range(26)}


def document(**parts: Any) -> dict[str, Any]:
    """Return a plain tokenizer of the letters a to z, with other parts."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": LETTERS,
        "merges": [],
    }
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", "added_tokens": [], "model": model, **empty, **parts}


def model(**parts: Any) -> dict[str, Any]:
    """Return a tokenizer whose model has other parts."""
    plain = document()
    return {**plain, "model": {**plain["model"], **parts}}


def sequence(kind: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return steps one after the other; `kind` is the name of their list."""
    return {"type": "Sequence", kind: steps}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    """Return a replacement."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern: str, kind: str = "Regex") -> dict[str, Any]:
    """Return a cut."""
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": "Isolated", "invert": False}


def added(content: str, **flags: bool) -> dict[str, Any]:
    """Return an added token."""
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": 26, "content": content, **dict.fromkeys(names, False), **flags}


def unigram(*scores: float) -> dict[str, Any]:
    """Return a unigram tokenizer of the first letters, with these scores."""
    vocab = [["<unk>", 0.0], *([letter, score] for letter, score in zip(LETTERS, scores, strict=False))]
    return document(model={"type": "Unigram", "unk_id": 0, "vocab": vocab})


def charsmap(table: list[int], rules: bytes) -> dict[str, Any]:
    """Return a tokenizer with a table of sentencepiece."""
    data = struct.pack(f"<{len(table) + 1}I", 4 * len(table), *table) + rules
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    return document(normalizer=step)


def nested(depth: int) -> dict[str, Any]:
    """Return a sequence in a sequence, and so on."""
    value: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        value = sequence("normalizers", [value])
    return value


def template(tokens: int) -> dict[str, Any]:
    """Return a post-processor that writes a token so often."""
    piece = {"SpecialToken": {"id": "a", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*[piece] * tokens, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
    }


MEGABYTE = 1 << 20
LONG = "b" * MEGABYTE

# Each with a part of the message that refuses it.
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "twelve replacements of one letter by ten": (
        lambda: document(normalizer=sequence("normalizers", [replace("a", "a" * 10)] * 12)),
        "normalizer: its steps can make a text",
    ),
    "a replacement of nothing by a megabyte": (
        lambda: document(normalizer=replace("x*", LONG, "Regex")),
        "normalizer.content: a text of 1048576 characters",
    ),
    "a replacement of nothing by a letter": (
        lambda: document(normalizer=replace("x*", "b", "Regex")),
        "normalizer.pattern: it matches an empty text",
    ),
    "an empty text replaced": (
        lambda: document(normalizer=replace("", "b")),
        "normalizer.pattern: it matches an empty text",
    ),
    "a pattern that backtracks": (
        lambda: document(pre_tokenizer=split("(a+)+[bc]")),
        "pre_tokenizer.pattern: this regular expression",
    ),
    "a pattern that takes the square": (
        lambda: document(pre_tokenizer=split("[a-y]*[z!]")),
        "pre_tokenizer.pattern: this regular expression",
    ),
    "a pattern in a decoder": (
        lambda: document(decoder=sequence("decoders", [replace("(a|a)*[bc]", "b", "Regex")])),
        "decoder.decoders[0].pattern: this regular expression",
    ),
    "many patterns": (
        lambda: document(
            pre_tokenizer=sequence("pretokenizers", [split("|".join(["[ab]{1,9}c"] * 60))] * 30)
        ),
        "have too many parts",
    ),
    "a long pattern": (lambda: document(pre_tokenizer=split(f"[{LONG}]")), "longer than 16384 characters"),
    "a long text to cut at": (
        lambda: document(pre_tokenizer=split("a" * 400, "String")),
        "pre_tokenizer.pattern: a text of 400 characters",
    ),
    "a megabyte before every text": (
        lambda: document(normalizer={"type": "Prepend", "prepend": LONG}),
        "normalizer.prepend: a text of",
    ),
    "ByteLevel ten times": (
        lambda: document(
            pre_tokenizer=sequence(
                "pretokenizers", [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}] * 10
            )
        ),
        "times as long",
    ),
    "steps without end": (
        lambda: document(normalizer=sequence("normalizers", [{"type": "NFC"}] * 5000)),
        "normalizer: 5000 steps",
    ),
    "nested sequences": (lambda: document(normalizer=nested(30)), "nested more than 8 deep"),
    "a step of another kind": (lambda: document(normalizer={"type": "Shell"}), "'Shell' is not known"),
    "a decoder that strips": (
        lambda: document(decoder={"type": "Strip", "content": " ", "start": 2**60, "stop": 0}),
        "decoder.start: 1152921504606846976 is out of range",
    ),
    "a decoder that grows": (
        lambda: document(decoder=sequence("decoders", [replace("a", "a" * 10)] * 12)),
        "decoder: its steps can make a text",
    ),
    "added tokens without end": (
        lambda: document(added_tokens=[added(f"<{index}>") for index in range(70_000)]),
        "added_tokens: 70000 tokens",
    ),
    "an added token of a megabyte": (
        lambda: document(added_tokens=[added(LONG)]),
        "added_tokens[0].content: no text of at most",
    ),
    "a token of a megabyte": (lambda: model(vocab={LONG: 0}), "a token of 1048576 characters"),
    "an id beyond the vocabulary": (lambda: model(vocab={**LETTERS, "ab": 2**32 - 1}), "renumber the tokens"),
    "a prefix of every letter": (
        lambda: model(continuing_subword_prefix=LONG),
        "model.continuing_subword_prefix: a text of",
    ),
    "words without end": (
        lambda: document(
            model={
                "type": "WordPiece",
                "unk_token": "a",
                "continuing_subword_prefix": "",
                "max_input_chars_per_word": 10**9,
                "vocab": LETTERS,
            }
        ),
        "max_input_chars_per_word",
    ),
    "a score that is no number": (lambda: unigram(float("nan")), "its score is not a finite number"),
    "a score without end": (lambda: unigram(1e308, 1e308), "its score is not a finite number"),
    "a table of megabytes": (
        lambda: charsmap([0], b"x" * MEGABYTE),
        "precompiled_charsmap: no text of at most",
    ),
    "a table with a long rule": (lambda: charsmap([0], b"x" * 4000), "it writes 4000 bytes for one"),
    "a table without an end": (
        lambda: document(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}),
        "the table in it ends after the data",
    ),
    "a table that leads outside": (
        lambda: charsmap([0xFFFFFFFF], b"x"),
        "the tokenizers library failed on it",
    ),
    "a merge that is shorter than its prefix": (
        lambda: model(continuing_subword_prefix="####", merges=[["a", "b"]]),
        "the tokenizers library failed on it",
    ),
    "a merge that is no token": (
        lambda: model(merges=[["a", "b"]]),
        "tokenizers ",  # the library says so, from 0.23 on in a panic
    ),
    "a post-processor of thousands": (
        lambda: document(post_processor=template(5000)),
        "post_processor: no lists of at most 64",
    ),
    "a decoder that strips more than there is": (
        lambda: document(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 5}),
        "the tokenizers library failed on it",
    ),
    "a square that the text does not show": (
        lambda: document(normalizer=replace("a", " "), pre_tokenizer=split(r"\s+$")),
        "known only where no other step changes a text",
    ),
    "a square in a decoder": (
        lambda: document(decoder=replace(r"\s+$", "", "Regex")),
        "known only where no other step changes a text",
    ),
    "a length of zero": (
        lambda: document(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "pre_tokenizer.length",
    ),
}


def text_of(value: dict[str, Any]) -> bytes:
    """Return the content of a file."""
    return json.dumps(value).encode()
