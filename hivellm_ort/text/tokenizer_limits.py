"""Limits on `tokenizer.json`, checked before the tokenizers library reads it.

The library runs the steps of the file in calls that cannot be interrupted. So there are limits on how much the steps
lengthen a text, how often they read it, and how much the file lists. Published tokenizers are far below them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from hivellm_ort.errors import LoadError
from hivellm_ort.text.patterns import form_of

__all__ = ["MAX_BYTES", "MAX_GROWTH", "Work", "check_limits"]

MAX_BYTES = 64 << 20
"""Largest file. Gemma's, of 262,144 tokens, has 32 MiB."""

MAX_GROWTH = 256
"""Most bytes that the normaliser and the pre-tokeniser may make of one byte of a text."""

_MAX_STEPS = 32  # steps of a normaliser, a pre-tokeniser or a decoder
_MAX_DEPTH = 8  # nesting of sequences
_MAX_COST = 1_024  # total of all expressions; see `patterns.Form`
_MAX_TOKENS = 1 << 20  # the largest published vocabulary has 901,629
_MAX_GAPS = 1 << 16  # ids without a token
_MAX_ADDED = 1 << 16
_MAX_TOKEN = 1_024  # characters; the longest published ones have 128
_MAX_TEXT = 256  # characters of any other text
_MAX_CHARSMAP = 1 << 20  # bytes of base64; the largest published one has 320 KiB
_MAX_RULE = 64  # bytes that a charsmap writes for one grapheme
_MAX_TEMPLATE = 64  # tokens that a post-processor may write
_MAX_WORD = 1_024  # characters that WordPiece takes for a word; 100 in published files
_MAX_SCORE = 1e9

# Most bytes that one byte becomes in a step. For NFKC and NFKD it is the figure of the Unicode Standard, for others
# the longest result of one character. A second pass of the same form changes nothing.
_NORMALIZERS = {
    "BertNormalizer": 6.0, "ByteLevel": 2.0, "Lowercase": 1.5, "NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0,
    "Nmt": 1.0, "Strip": 1.0, "StripAccents": 1.0,
}  # fmt: skip
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_PRE_TOKENIZERS = {
    "BertPreTokenizer": 1.0, "ByteLevel": 3.0, "CharDelimiterSplit": 1.0, "Digits": 1.0, "FixedLength": 1.0,
    "Punctuation": 1.0, "Split": 1.0, "UnicodeScripts": 1.0, "Whitespace": 1.0,
    "WhitespaceSplit": 1.0,
}  # fmt: skip
_DECODERS = {
    "BPEDecoder": 3.0, "ByteFallback": 3.0, "ByteLevel": 3.0, "CTC": 1.0, "Fuse": 1.0, "Metaspace": 1.0, "Strip": 1.0,
    "WordPiece": 2.0,
}  # fmt: skip
_POST_PROCESSORS = ("BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing")
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


class Work(NamedTuple):
    """Cost of the normalisation and pre-tokenization of a tokenizer.

    Attributes:
        growth: Most bytes that one byte becomes; at least 1.
        square: Whether its time is quadratic in a run of digits or spaces.
    """

    growth: float
    square: bool


def check_limits(document: Any, name: str) -> Work:
    """Check that the steps of a tokenizer need bounded time and memory for texts of bounded length.

    Args:
        document: The content of `tokenizer.json`.
        name: Name of the file, for messages.

    Raises:
        LoadError: A step is unknown or exceeds a limit. The message names its position.
    """
    return _Check(name).work(document)


class _Check:
    def __init__(self, name: str) -> None:
        self._name = name
        self._cost = 0
        self._square = ""  # position of a quadratic expression

    def work(self, document: Any) -> Work:
        if not isinstance(document, Mapping):
            self._fail("", "no object; write the one of a tokenizer")
        self._added(document.get("added_tokens"))
        self._model(document.get("model"))
        self._post_processor(document.get("post_processor"), "post_processor")
        growth = self._product(document, "normalizer", _NORMALIZERS)
        growth *= self._product(document, "pre_tokenizer", _PRE_TOKENIZERS)
        decoding = self._product(document, "decoder", _DECODERS)
        for place, factor in (("normalizer", growth), ("decoder", decoding)):
            if factor > MAX_GROWTH:
                self._fail(
                    place, f"its steps can make a text {factor:.0f} times as long; {MAX_GROWTH} is the limit"
                )
        if self._square:
            self._check_square(document)
        return Work(max(growth, 1.0), bool(self._square))

    def _check_square(self, document: Mapping[str, Any]) -> None:
        """Refuse steps that may lengthen runs of digits or spaces, which quadratic expressions then read."""
        steps = [
            step["type"]
            for part in ("normalizer", "pre_tokenizer")
            for _, step in self._steps(document.get(part), part, part)
        ]
        known = {*_PRE_TOKENIZERS, "NFC", "NFD"}
        if not self._square.startswith("pre_tokenizer") or not known.issuperset(steps):
            self._fail(self._square, "this expression is known only where no other step changes a text")

    def _product(self, document: Mapping[str, Any], part: str, known: Mapping[str, float]) -> float:
        steps = list(self._steps(document.get(part), part, part))
        if len(steps) > _MAX_STEPS:
            self._fail(part, f"{len(steps)} steps; {_MAX_STEPS} is the limit")
        growth, seen = 1.0, set[str]()
        for place, step in steps:
            kind = str(step["type"])
            if kind not in seen or kind not in _FORMS:
                growth *= self._factor(step, kind, place, part, known)
            seen.add(kind)
            if growth > 1e9:
                break
        return growth

    def _steps(
        self, value: Any, part: str, place: str, depth: int = 0
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the steps of a part; sequences are flattened."""
        if value is None:
            return
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            self._fail(place, "no object with a type")
        if value["type"] != "Sequence":
            yield place, value
            return
        if depth == _MAX_DEPTH:
            self._fail(place, f"sequences are nested more than {_MAX_DEPTH} deep")
        inner = value.get(_INNER[part])
        if not isinstance(inner, list):
            self._fail(f"{place}.{_INNER[part]}", "no list")
        if len(inner) > _MAX_STEPS:
            self._fail(place, f"{len(inner)} steps; {_MAX_STEPS} is the limit")
        for index, step in enumerate(inner):
            yield from self._steps(step, part, f"{place}.{_INNER[part]}[{index}]", depth + 1)

    def _factor(
        self, step: Mapping[str, Any], kind: str, place: str, part: str, known: Mapping[str, float]
    ) -> float:
        """Return the most bytes that one byte becomes in a step, at least 1."""
        for key, value in step.items():
            if isinstance(value, str) and len(value) > _MAX_TEXT and key != "precompiled_charsmap":
                self._fail(f"{place}.{key}", f"a text of {len(value)} characters; {_MAX_TEXT} is the limit")
            if type(value) is int and not 0 <= value <= _MAX_WORD:
                self._fail(f"{place}.{key}", f"{value} is out of range; it must be from 0 to {_MAX_WORD}")
        if kind == "Replace" and part != "pre_tokenizer":
            return max(1.0, self._bytes(step, "content", place) / max(self._pattern(step, place), 1))
        if kind == "Prepend" and part == "normalizer":
            return 1.0 + self._bytes(step, "prepend", place)
        if kind == "Precompiled" and part == "normalizer":
            return self._charsmap(step.get("precompiled_charsmap"), place)
        if kind == "Metaspace" and part == "pre_tokenizer":
            return 1.0 + self._bytes(step, "replacement", place)
        if kind not in known:
            self._fail(place, f"{kind[:40]!r} is not known")
        if kind == "Split":
            self._pattern(step, place, matches_nothing=True)
        if kind == "FixedLength" and step.get("length", 1) == 0:
            self._fail(f"{place}.length", "0 is out of range")
        return known[kind]

    def _pattern(self, step: Mapping[str, Any], place: str, *, matches_nothing: bool = False) -> int:
        """Return the fewest bytes that the pattern of a step matches."""
        pattern = step.get("pattern")
        place = f"{place}.pattern"
        text = (
            next(iter(pattern.values()), None) if isinstance(pattern, Mapping) and len(pattern) == 1 else None
        )
        if not isinstance(pattern, Mapping) or not isinstance(text, str):
            self._fail(place, "no object with String or Regex")
        if "Regex" in pattern:
            form = form_of(text, f"{self._name}: {place}")
            shortest, cost = form.shortest, form.cost
            if form.square:
                self._square = place
        else:
            if len(text) > _MAX_TEXT:
                self._fail(place, f"a text of {len(text)} characters; {_MAX_TEXT} is the limit")
            shortest, cost = _size(text), len(text)
        self._cost += cost
        if self._cost > _MAX_COST:
            self._fail(place, "it and the expressions before it have too many parts")
        if shortest == 0 and not matches_nothing:
            self._fail(place, "it matches an empty text, and what replaces it would go everywhere")
        return shortest

    def _charsmap(self, value: Any, place: str) -> float:
        place = f"{place}.precompiled_charsmap"
        if not isinstance(value, str) or len(value) > _MAX_CHARSMAP:
            self._fail(place, f"no text of at most {_MAX_CHARSMAP} characters")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            self._fail(place, "no base64")
        start = 4 + int.from_bytes(data[:4], "little")
        if not 8 <= start <= len(data) or start % 4:
            self._fail(place, "the table in it ends after the data")
        longest = max(map(len, data[start:].split(b"\0")))
        if longest > _MAX_RULE:
            self._fail(place, f"it writes {longest} bytes for one character; {_MAX_RULE} is the limit")
        return float(max(longest, 1))

    def _post_processor(self, value: Any, place: str, depth: int = 0) -> None:
        if value is None:
            return
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind == "Sequence" and isinstance(value.get("processors"), list) and depth < _MAX_DEPTH:
            if len(value["processors"]) > _MAX_STEPS:
                self._fail(place, f"more than {_MAX_STEPS} steps")
            for index, inner in enumerate(value["processors"]):
                self._post_processor(inner, f"{place}.processors[{index}]", depth + 1)
        elif kind == "TemplateProcessing":
            self._template(value, place)
        elif kind not in _POST_PROCESSORS:
            self._fail(place, f"{str(kind)[:40]!r} is not known, or nested too deeply")

    def _template(self, value: Mapping[str, Any], place: str) -> None:
        special = value.get("special_tokens", {})
        lists: list[Any] = [value.get("single"), value.get("pair")]
        lists.append(list(special) if isinstance(special, Mapping) else None)
        if isinstance(special, Mapping):
            lists += [one.get("ids") if isinstance(one, Mapping) else None for one in special.values()]
        for one in lists:
            size = len(one) if isinstance(one, list | str) else None
            if size is None or size > _MAX_TEMPLATE:
                self._fail(place, f"no lists of at most {_MAX_TEMPLATE} tokens")

    def _added(self, tokens: Any) -> None:
        if tokens is None:
            return
        if not isinstance(tokens, list):
            self._fail("added_tokens", "no list")
        if len(tokens) > _MAX_ADDED:
            self._fail("added_tokens", f"{len(tokens)} tokens; {_MAX_ADDED} is the limit")
        for index, token in enumerate(tokens):
            content = token.get("content") if isinstance(token, Mapping) else None
            if not isinstance(content, str) or len(content) > _MAX_TOKEN:
                self._fail(f"added_tokens[{index}].content", f"no text of at most {_MAX_TOKEN} characters")

    def _model(self, model: Any) -> None:
        if not isinstance(model, Mapping):
            self._fail("model", "no object")
        if model.get("type", "BPE") not in _MODELS:  # old files have none
            self._fail("model.type", f"{str(model['type'])[:40]!r} is not known")
        for key, value in model.items():
            if isinstance(value, str) and len(value) > _MAX_TEXT:
                self._fail(f"model.{key}", f"a text of {len(value)} characters; {_MAX_TEXT} is the limit")
        word = model.get("max_input_chars_per_word", 100)
        if type(word) is not int or not 0 <= word <= _MAX_WORD:
            self._fail("model.max_input_chars_per_word", f"it must be a number from 0 to {_MAX_WORD}")
        vocab = model.get("vocab")
        if not isinstance(vocab, list | Mapping):
            self._fail("model.vocab", "no list of tokens")
        if len(vocab) > _MAX_TOKENS:
            self._fail("model.vocab", f"{len(vocab)} tokens; {_MAX_TOKENS} is the limit")
        if isinstance(vocab, Mapping):
            if not set(map(type, vocab.values())) <= {int}:
                self._fail("model.vocab", "an id that is not a whole number")
            ids = vocab.values()
            if ids and not (min(ids) >= 0 and max(ids) < len(ids) + _MAX_GAPS):
                self._fail(
                    "model.vocab",
                    f"an id is below 0 or above {len(ids) + _MAX_GAPS - 1}: renumber the tokens",
                )
        else:
            vocab = self._scored(vocab)
        longest = max(map(len, vocab), default=0)
        if longest > _MAX_TOKEN:
            self._fail("model.vocab", f"a token of {longest} characters; {_MAX_TOKEN} is the limit")
        merges = model.get("merges")
        if not isinstance(merges, list | None) or len(merges or ()) > 2 * _MAX_TOKENS:
            self._fail("model.merges", f"no list of at most {2 * _MAX_TOKENS} pairs")

    def _scored(self, vocab: list[Any]) -> list[str]:
        tokens = []
        for index, pair in enumerate(vocab):
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                self._fail(f"model.vocab[{index}]", "no token with its score")
            score = pair[1]
            if type(score) not in (int, float) or not -_MAX_SCORE <= score <= _MAX_SCORE:
                self._fail(f"model.vocab[{index}]", "its score is not a finite number in range")
            tokens.append(pair[0])
        return tokens

    def _bytes(self, step: Mapping[str, Any], key: str, place: str) -> int:
        text = step.get(key)
        if not isinstance(text, str):
            self._fail(f"{place}.{key}", "no text")
        return _size(text)

    def _fail(self, place: str, fault: str) -> NoReturn:
        where = f"{self._name}: {place}" if place else self._name
        raise LoadError(f"{where}: {fault}; use the tokenizer of a published model, or update hivellm-ort")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
