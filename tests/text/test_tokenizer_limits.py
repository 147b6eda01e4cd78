"""Tokenizers whose files ask for too much, and those of published models."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hostile_tokenizers import (
    LETTERS,
    REFUSED,
    added,
    document,
    model,
    replace,
    sequence,
    split,
    template,
    text_of,
    unigram,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_samples import byte_level_tokenizer
from tokenizers import Regex, decoders, pre_tokenizers

from hivellm_ort.errors import ContextLengthError, InferenceError, LoadError, OptionError
from hivellm_ort.loading.adapter_tokenizer import read_tokenizer
from hivellm_ort.text import patterns, tokenizer_file
from hivellm_ort.text.patterns import form_of
from hivellm_ort.text.tokenizer import TextTokenizer
from hivellm_ort.text.tokenizer_file import parse_tokenizer
from hivellm_ort.text.tokenizer_limits import Work

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# As published models have them.
PUBLISHED = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}",
    "qwen2": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}",
    "o200k": rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}",
    "tekken": rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}",
    "cl100k": rf"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}+\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "deepseek-v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_END}",
    "deepseek-llm": r"\s+$",
    "bloom": r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "exaone": rf"{_CONTRACTIONS}|{_BEFORE}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|\s*[\r\n]|{_END}",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "t5": r" {2,}",
    "falcon": r"[0-9][0-9][0-9]",
    "gemma": r"[^\n]+|[\n]+",
    "superbpe": r"(?=(\d{3})+(?!\d))",
    "aya": r"\d{1,3}(?=(?:\d{3})*\b)",
}
SLOW = [
    r"(a+)+b",
    r"(a|a)*b",
    r"a*b",
    r"a*a*b",
    r"(?:ab)*c",
    r"(?:a|b)+",
    r".*foo",
    r"\p{L}+\p{N}+\p{L}+",
    r"a?a?a?a?a?a?a?a?a?aaaaaaaaa",
    r"(?:a?){30}a{30}",
    r"(?:ab){10000,}c",
    r"a{99,}",
    r"a{1,3}+",
    r"a*+b",
    r"a*?b",
    r"(?=a*b)a",
    r"(?<!a*b)a",
    # What fails after the spaces must be taken at once, and not one by one.
    r"\s*[\r\n]+|\s|\s+",
    r"\s*[\r\n]+|\S+",
    # Not known here.
    r"(\w)\1",
    r"(?<x>a)\g<x>",
    r"(?x:a b)",
    r"(?#a)b",
    r"\Ra",
    r"\K",
    # Malformed.
    r"[a",
    r"(a",
    r"a)",
    r"*a",
    r"a{5,2}",
]


def loaded(value: dict[str, Any], folder: Path) -> TextTokenizer:
    """Return the tokenizer of a folder with this file."""
    (folder / "tokenizer.json").write_bytes(text_of(value))
    return TextTokenizer.from_folder(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    """A file that asks for too much is a LoadError with its place, within seconds, from base and adapter."""
    make, message = REFUSED[name]
    start = time.monotonic()

    with pytest.raises(LoadError) as caught:
        loaded(make(), tmp_path)

    assert message in str(caught.value)
    assert "tokenizer.json: " == str(caught.value)[:16]
    assert read_tokenizer(tmp_path) is None
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_taken(name: str) -> None:
    """The regular expressions of published models are taken, and take the time they seem to."""
    pattern = PUBLISHED[name]
    empty = {"superbpe": 0}
    tokenizer = byte_level_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")

    assert (
        empty.get(name, 2 if name == "t5" else 3 if name == "falcon" else 1)
        == form_of(pattern, "here").shortest
    )
    for unit in ("a", "A", " ", "\n", "7", ".", "'s"):
        tokenizer.encode(unit * 3000 + "\x00")


@pytest.mark.parametrize("pattern", SLOW)
def test_slow_patterns_are_refused(pattern: str) -> None:
    """A regular expression that may take the square of a text's length, or is not understood, is refused."""
    with pytest.raises(LoadError, match="here: this regular expression could take time beyond all bounds"):
        form_of(pattern, "here")


_ATOMS = st.sampled_from(["a", "b", "[ab]", r"\w", "(?:a|b)", "(?:ab)", "(?=b)", "(?!a)", "c"])
_PARTS = st.tuples(_ATOMS, st.sampled_from(["", "", "?", "*", "+", "{1,3}", "*+"])).map("".join)
_PATTERNS = st.lists(st.lists(_PARTS, min_size=1, max_size=4).map("".join), min_size=1, max_size=4).map(
    "|".join
)


@given(pattern=_PATTERNS, unit=st.sampled_from(["a", "ab", "aab", "abb", "b"]))
def test_taken_patterns_take_the_time_of_the_text(pattern: str, unit: str) -> None:
    """Whatever the form allows, a run of thousands of characters is cut at once."""
    try:
        form_of(pattern, "here")
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception:  # refused, or no expression of the library's
        return
    start = time.perf_counter()
    cut.pre_tokenize_str(unit * (20_000 // len(unit)) + "!")
    assert time.perf_counter() - start < 2


def test_long_patterns_are_read_at_once() -> None:
    """The check itself takes the time of the expression's length."""
    start = time.monotonic()
    for pattern in ("(" * 8000, "[" * 16_000, "a?" * 8000, "a*|" * 5000, "\\p{L}" * 3000):
        with pytest.raises(LoadError):
            form_of(pattern, "here")
    assert patterns.MAX_PATTERN == len("[" + "a" * (patterns.MAX_PATTERN - 2) + "]")
    assert 1 == form_of("[" + "a" * (patterns.MAX_PATTERN - 2) + "]", "here").shortest
    assert time.monotonic() - start < 5


def test_limits_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was within the limits is not read as JSON again; a record that was changed counts as the worst."""
    content = byte_level_tokenizer().to_str().encode()
    known: dict[bytes, Mapping[str, float]] = {}

    def recall(_: str, content: bytes, find: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        if content not in known:
            known[content] = find()
        return known[content]

    first = parse_tokenizer(content, recall=recall).work
    assert parse_tokenizer(content).work == first
    monkeypatch.setattr(tokenizer_file, "check_limits", lambda *_: pytest.fail("checked again"))
    assert first == parse_tokenizer(content, recall=recall).work
    for record in ({}, {"growth": 0.0}):
        known[content] = record
        assert (
            Work(record.get("growth", 256) or 1, square=True) == parse_tokenizer(content, recall=recall).work
        )


def test_truncation_and_padding_are_off(tmp_path: Path) -> None:
    """A file that cuts or pads its texts is read without that, wherever it is read."""
    padding = {
        "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "a",
    }  # fmt: skip
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tokenizer = loaded(document(padding=padding, truncation=truncation), tmp_path)
    other = read_tokenizer(tmp_path)

    assert [0, 1, 2] == tokenizer.encode("abc")
    assert other is not None
    assert [0, 1, 2] == other.encode("abc").ids


def test_a_panic_of_an_encoding_is_an_error() -> None:
    """What the library fails on later is an InferenceError too, and the next text is encoded."""
    library = byte_level_tokenizer()
    library.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    tokenizer = TextTokenizer(library)

    with pytest.raises(InferenceError, match=r"failed on this text .*retry-limit"):
        tokenizer.encode("x" * 40)
    assert "ok" == tokenizer.decode(tokenizer.encode("ok"))


def test_a_panic_of_a_decoding_is_an_error() -> None:
    """A decoder that strips more than there is fails with an InferenceError."""
    library = parse_tokenizer(text_of(document())).tokenizer
    library.decoder = decoders.Strip("a", 0, 5)
    tokenizer = TextTokenizer(library)

    with pytest.raises(InferenceError, match="failed on this text"):
        tokenizer.decode([0])
    assert "b" == tokenizer.decode([1])


def test_a_text_without_tokens_is_an_error(tmp_path: Path) -> None:
    """A character that the vocabulary lacks, and that nothing stands for, is an InferenceError and no bare one."""
    value = unigram(-1.0, -2.0)
    value["model"]["unk_id"] = None
    tokenizer = loaded(value, tmp_path)

    with pytest.raises(InferenceError, match="failed on this text"):
        tokenizer.encode("z")


def test_long_texts_let_others_go_on(byte_level: TextTokenizer) -> None:
    """A text of a million characters is encoded as its parts are, and other threads run meanwhile."""
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    ids = byte_level.encode("a b " * 250_000)
    end = time.perf_counter()
    done.set()
    thread.join()

    assert "a b " * 250_000 == byte_level.decode(ids)
    assert byte_level.encode("a b " * 100)[:100] == ids[:100]
    assert 2 < len([moment for moment in ticks if start < moment < end])


def test_surrogates_in_a_long_text_are_refused(byte_level: TextTokenizer) -> None:
    """A lone surrogate is the same error in a short text and in a long one."""
    with pytest.raises(OptionError, match="lone surrogates"):
        byte_level.encode("a" * 100_000 + "\ud800")


def test_a_text_that_would_grow_too_much_is_refused(tmp_path: Path) -> None:
    """The longer a tokenizer may make a text, the shorter it must be."""
    steps = [replace("a", "a" * 10), replace("a", "a" * 10)]
    tokenizer = loaded(document(normalizer=sequence("normalizers", steps)), tmp_path)

    assert 100_000 == len(tokenizer.encode("a" * 1000))
    with pytest.raises(ContextLengthError, match="a text of 2000000 characters is too long"):
        tokenizer.encode("a" * 2_000_000)


def test_what_takes_the_square_of_a_run_is_bounded(tmp_path: Path) -> None:
    """With DeepSeek-LLM's expression a run of spaces or digits is bounded, and with the others it is not."""
    vocab = {**LETTERS, " ": 26, "7": 27}
    slow = loaded(model(vocab=vocab) | {"pre_tokenizer": split(r"\s+$")}, tmp_path)
    quick = loaded(model(vocab=vocab) | {"pre_tokenizer": split(r"\s+(?!\S)|\s+")}, tmp_path)

    assert 2001 == len(slow.encode(" " * 2000 + "a"))
    for unit in (" ", "7"):
        with pytest.raises(ContextLengthError, match="more than 2000 spaces or digits in a row"):
            slow.encode("a" + unit * 2001 + "a")
        assert 100_002 == len(quick.encode("a" + unit * 100_000 + "a"))


def test_many_markers_are_sought_at_once(tmp_path: Path) -> None:
    """Thousands of markers cost no time, wherever a text begins like one."""
    tokens = [added(f"<|{index * 7919 % 100_003:x}|>", special=True) for index in range(30_000)]
    tokenizer = loaded(document(added_tokens=tokens), tmp_path)
    start = time.monotonic()

    assert [] == tokenizer.marker_spans("<|z" * 50_000)
    assert [(3, 8)] == tokenizer.marker_spans("abc<|0|>")
    assert time.monotonic() - start < 3


def test_what_published_files_have_is_taken(tmp_path: Path) -> None:
    """Normalisers, pre-tokenisers and decoders as Llama 2, Mistral, Gemma, CLIP, T5, Qwen and GPT-NeoX have them."""
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    fuse = [replace("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    spaces = replace(r"\s+", " ", "Regex")
    punctuation = {"type": "Punctuation", "behavior": "Contiguous"}
    parts: list[dict[str, Any]] = [
        {"normalizer": sequence("normalizers", [prepend, replace(" ", "\u2581")])},
        {"normalizer": replace(" ", "\u2581"), "pre_tokenizer": split(" ", "String")},
        {"normalizer": sequence("normalizers", [{"type": "NFC"}, spaces, {"type": "Lowercase"}])},
        {"normalizer": sequence("normalizers", []), "pre_tokenizer": sequence("pretokenizers", [])},
        {"normalizer": replace(" {2,}", "\u2581", "Regex"), "pre_tokenizer": metaspace},
        {"normalizer": {"type": "NFKC"}, "pre_tokenizer": byte_level, "post_processor": byte_level},
        {
            "normalizer": {
                "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
        },
        {"pre_tokenizer": sequence("pretokenizers", [{"type": "Digits", "individual_digits": True}, byte_level])},
        {
            "pre_tokenizer": sequence("pretokenizers", [punctuation, byte_level]),
            "decoder": byte_level,
        },
        {"decoder": sequence("decoders", [*fuse, strip])},
        {"decoder": metaspace},
        {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
        {"added_tokens": [added(f"<|{index}|>", special=True, lstrip=True) for index in range(1000)]},
    ]  # fmt: skip
    for one in parts:
        assert 26 <= loaded(document(**one), tmp_path).vocab_size


def test_old_and_odd_models_are_taken() -> None:
    """A model without a type, merges as one text each, and ids with gaps."""
    value = model(vocab={**LETTERS, "ab": 500}, merges=["a b"])
    del value["model"]["type"]

    assert [500, 2] == parse_tokenizer(text_of(value)).tokenizer.encode("abc").ids


def test_files_in_other_encodings(tmp_path: Path) -> None:
    """A file with a byte order mark is read as any text file of a package is."""
    (tmp_path / "tokenizer.json").write_bytes(json.dumps(document()).encode("utf-16"))

    assert [0] == TextTokenizer.from_folder(tmp_path).encode("a")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in _places(inner, (*path, key)))]


def _replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    if isinstance(value, dict):
        return {
            key: _replaced(inner, path[1:], junk) if key == path[0] else inner for key, inner in value.items()
        }
    return [_replaced(inner, path[1:], junk) if key == path[0] else inner for key, inner in enumerate(value)]


_WHOLE = document(
    added_tokens=[added("<|a|>", special=True), added("b", normalized=True)],
    normalizer=sequence("normalizers", [{"type": "Prepend", "prepend": "_"}, replace("x+", "y", "Regex")]),
    pre_tokenizer=sequence(
        "pretokenizers", [split(PUBLISHED["qwen2"]), {"type": "FixedLength", "length": 3}]
    ),
    post_processor=template(1),
    decoder=sequence(
        "decoders", [replace("y", "x"), {"type": "Strip", "content": "a", "start": 1, "stop": 0}]
    ),
    model={**unigram(-1.0, -2.0)["model"], "byte_fallback": False},
)
_JUNK = st.sampled_from(
    [None, True, 0, -1, 10**30, 1.5, "", "a", "\x1b[31m", [], {}, {"type": "NFC"}, {"type": []}, [["a", 1]], {"a": 0}]
)  # fmt: skip


@given(place=st.sampled_from(_places(_WHOLE)), junk=_JUNK)
def test_any_value_anywhere_is_read_or_refused(place: tuple[Any, ...], junk: Any) -> None:
    """Whatever stands in the place of a value, the file is read or refused, and a text encoded or refused."""
    words = ""
    try:
        tokenizer = TextTokenizer(parse_tokenizer(text_of(_replaced(_WHOLE, place, junk))).tokenizer)
        assert isinstance(tokenizer.decode(tokenizer.encode("ab xx z <|a|>")), str)
        assert isinstance(tokenizer.prefix, str)
    except (LoadError, InferenceError) as error:
        words = str(error)
    assert "\x1b" not in words
