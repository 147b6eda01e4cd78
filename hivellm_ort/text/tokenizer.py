"""The tokenizer of a base bundle, read from `tokenizer.json` with the `tokenizers` library.

Only the special tokens of `tokenizer_config.json` are used (see `hivellm_ort.text.template`).
Its `clean_up_tokenization_spaces` is ignored on purpose: it deletes spaces before `.`, `,`, `!` and `'s`, which would
change string literals in generated code.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hivellm_ort.errors import ContextLengthError, InferenceError, LoadError
from hivellm_ort.panics import panics_as
from hivellm_ort.text.library_calls import decoded, encoded, failure
from hivellm_ort.text.markers import LiteralEncoder, is_marker, replace_spans, restore_markers
from hivellm_ort.text.tokenizer_file import Recall, parse_tokenizer
from hivellm_ort.text.tokenizer_limits import Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tokenizers  # type: ignore[import-untyped, unused-ignore]

    from hivellm_ort.paths import StrPath

__all__ = ["TextTokenizer", "Tokenizer"]

# What the ByteFallback decoder reads as one byte (its parser also takes a sign, as in `<0x+A>`).
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f+][0-9A-Fa-f]>")


# Largest text in bytes after normalisation. The library needs 17 times as much memory.
_MAX_WORK = 128 << 20
_PLAIN = Work(growth=1.0, square=False)
# Longest run of spaces or digits for the few quadratic tokenizers: a hundredth of a second.
_MAX_RUN = 2_000
_RUN = re.compile(rf"(?<!\s)\s{{{_MAX_RUN + 1}}}|(?<!\d)\d{{{_MAX_RUN + 1}}}")
_END = 1 << 32  # ids of the tokenizers library have 32 bits; it fails on others
# Characters of all markers that are searched at every position.
_MAX_BEGINNINGS = 64

# The characters with which ByteLevel (GPT-2) writes bytes: visible ones stand for themselves, the others are written
# as characters from U+0100 on.
_UNSEEN = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
_BYTES = {0x100 + place: byte for place, byte in enumerate(_UNSEEN)} | dict.fromkeys(_UNSEEN, 0xFFFF)


class Tokenizer(Protocol):
    """The interface of tokenizers that the runtime needs. Tests implement it too."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including added ones."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without added special tokens."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; invalid UTF-8 becomes U+FFFD."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id as the vocabulary has it, or None."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Return whether `decode(…, skip_special_tokens=True)` leaves the token out."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Return whether the token is a single byte that is decoded together with neighbouring byte tokens."""
        ...


class TextTokenizer:
    """A `tokenizers.Tokenizer` without truncation, padding or added special tokens.

    Args:
        tokenizer: The tokenizer to wrap; its truncation and padding are switched off in place.
        work: Cost of its normalisation and pre-tokenization. Default: that of published models.

    Attributes:
        special_ids: Ids of special added tokens, such as `<|im_end|>`, which answers do not show.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, work: Work = _PLAIN) -> None:
        # A prompt is never cut or padded silently; the context check is the caller's.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._max_bytes = int(_MAX_WORK / work.growth)
        self._slow_run = _RUN if work.square else None
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        markers = {token_id: token for token_id, token in added.items() if is_marker(token)}
        self._marker_ids = frozenset(markers)
        # Markers are searched in the normalised text, so the original text may have other characters.
        exact = not any(token.normalized for token in markers.values())
        self._marker_text = _beginnings([token.content for token in markers.values()]) if exact else None
        # Tested with the decoder itself, because ByteFallback may be anywhere in a sequence.
        decoder = tokenizer.decoder
        self._gathers_bytes = decoder is not None and decoder.decode(["<0x41>"]) == "A"

    @classmethod
    def from_folder(cls, folder: StrPath, *, recall: Recall | None = None) -> TextTokenizer:
        """Read `tokenizer.json` in `folder`.

        Args:
            folder: The unpacked base bundle or expert package.
            recall: As for `parse_tokenizer`.

        Raises:
            LoadError: The file is missing, unreadable or not a tokenizer, or exceeds a limit (see
                `tokenizer_file`).
        """
        try:
            content = Path(folder, "tokenizer.json").read_bytes()
        except OSError as error:
            raise LoadError(
                f"tokenizer.json: cannot be read ({error.strerror}); "
                "export the base again, or unpack the package again"
            ) from error
        tokenizer, work = parse_tokenizer(content, recall=recall)
        with panics_as(_load_failure):
            return cls(tokenizer, work=work)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including added ones. The model's logits may be wider, padded with unused rows."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def to_json(self) -> str:
        """Return the tokenizer as text of a `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without added special tokens.

        Special tokens in the text become special tokens, as in Hugging Face's tokenizers. Rendered chat templates
        need this.

        Args:
            text: Any text; empty text gives an empty list.

        Raises:
            OptionError: `text` holds a lone surrogate, which UTF-8 cannot encode.
            ContextLengthError: The text is so long that it would take gigabytes or minutes.
            InferenceError: The tokenizers library fails on it.
        """
        token_ids: list[int] = self._encoding(text).ids
        return token_ids

    def marker_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the spans of markers that `encode` reads in `text`: first character, and the one after the last.

        A marker is an added token that is special or written `<|…|>`.

        Args:
            text: Any text.

        Raises:
            OptionError: `text` holds a lone surrogate.
        """
        return [span for _, span in self._markers(text)] if self._may_hold_markers(text) else []

    def markers(self, text: str) -> list[int]:
        """Return the markers that `encode` reads in `text`, in order. Raises as `encode`."""
        if not self._may_hold_markers(text):
            return []
        return [token_id for token_id, _ in self._markers(text)]

    def markers_of(self, token_ids: Sequence[int]) -> list[int]:
        """Return the markers among `token_ids`, in order."""
        return [token_id for token_id in token_ids if token_id in self._marker_ids]

    @cached_property
    def marker_names(self) -> dict[str, str]:
        """A random name for each marker."""
        names = self._literal_encoder.names
        return {self.id_to_token(token_id) or "": name for token_id, name in names.items()}

    def named_markers(self, text: str) -> list[int]:
        """Return the markers whose names are in `text`, in order."""
        return self._literal_encoder.named(text)

    def encode_named(self, text: str) -> list[int]:
        """Return the token ids of `text`. Names of markers become markers; markers stay plain text.

        Raises:
            InferenceError: The model of this tokenizer makes a marker from plain text.
            OptionError: `text` holds a lone surrogate.
        """
        token_ids = self._literal_encoder.encode(text)
        if self.named_markers(text) != self.markers_of(token_ids):
            found = next((marker for marker in self.marker_names if marker in text), "")
            raise InferenceError(
                f"a message holds the text of a special token ({found!r}), which this tokenizer cannot write as "
                "plain text: remove it from the message"
            )
        return token_ids

    def encode_literals(self, text: str, literals: Mapping[str, str]) -> list[int]:
        """Return the token ids of `text`, with placeholders for texts that must stay plain text.

        Elsewhere markers become tokens, as in `encode`. The ids are those of one whole text: it is not split at
        placeholders.

        Args:
            text: A text that may hold placeholders.
            literals: The text of each placeholder (see `markers.hide_markers`).

        Raises:
            InferenceError: The model of this tokenizer makes a marker from plain text.
            OptionError: `text` holds a lone surrogate.
        """
        markers = self._markers(text)
        names = iter([self._literal_encoder.names[token_id] for token_id, _ in markers])
        named = replace_spans(text, [span for _, span in markers], lambda _: next(names))
        return self.encode_named(restore_markers(named, literals))

    @cached_property
    def prefix(self) -> str:
        """The special tokens that the tokenizer adds before a text, such as `<s>`; often none.

        `encode` does not add them, because a model's own chat template writes them. Our built-in prompt formats must
        write them too.
        """
        ids = encoded(self._tokenizer, "text", special=True).ids
        return "".join(self.id_to_token(i) or "" for i in takewhile(self.is_special, ids))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; invalid UTF-8 becomes U+FFFD.

        Args:
            token_ids: Ids from 0. Ids without a token add nothing.
            skip_special_tokens: Whether to leave out special tokens.

        Raises:
            InferenceError: The tokenizers library fails on them.
        """
        return decoded(self._tokenizer, token_ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id as the vocabulary has it, or None, for any integer."""
        if not 0 <= token_id < _END:
            return None
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a special added token, such as `<|im_end|>`."""
        return token_id in self.special_ids

    def is_byte(self, token_id: int) -> bool:
        """Return whether the token is `<0xNN>` and the decoder joins such tokens to characters."""
        if not self._gathers_bytes:
            return False
        token = self.id_to_token(token_id)
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each token adds to a text, by id; empty for special tokens and unused ids.

        A text may still begin differently: some tokenizers drop the leading space of its first token.
        """
        decoder = self._tokenizer.decoder
        by_bytes = decoder is not None and decoder.decode(["\u0120"]) == " "
        tokens = self._tokenizer.get_vocab(with_added_tokens=True)
        texts = [b""] * (max(tokens.values(), default=-1) + 1)
        for token, token_id in tokens.items():
            if self.is_special(token_id):
                continue
            if by_bytes:
                texts[token_id] = _bytes_of(token)
            elif self._gathers_bytes and _BYTE_TOKEN.fullmatch(token):  # two tokens may have one id
                texts[token_id] = bytes([int(token[3:5], 16)])
            elif decoder is None:
                texts[token_id] = f" {token}".encode()
            else:
                # After another token, because decoders may treat the first token of a text differently.
                with panics_as(failure):
                    texts[token_id] = decoder.decode(["a", token]).removeprefix("a").encode()
        return texts

    @cached_property
    def _literal_encoder(self) -> LiteralEncoder:
        return LiteralEncoder(self._tokenizer, self._marker_ids)

    def _may_hold_markers(self, text: str) -> bool:
        # The search takes microseconds, encoding milliseconds, and almost no text has markers.
        return bool(self._marker_ids) and (
            self._marker_text is None or self._marker_text.search(text) is not None
        )

    def _markers(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Return the id and the span of every marker that `encode` reads in `text`."""
        encoding = self._encoding(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [(token_id, span) for token_id, span in pairs if token_id in self._marker_ids]

    def _encoding(self, text: str) -> tokenizers.Encoding:
        if len(text) * 4 > self._max_bytes and len(text.encode("utf-8", "replace")) > self._max_bytes:
            raise ContextLengthError(
                f"a text of {len(text)} characters is too long: the tokenizer takes {self._max_bytes} bytes at most"
            )
        if self._slow_run is not None and self._slow_run.search(text) is not None:
            raise ContextLengthError(
                f"a text has more than {_MAX_RUN} spaces or digits in a row, which would take this model's tokenizer "
                "too long: remove some"
            )
        return encoded(self._tokenizer, text)


def _beginnings(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Return a search for prefixes of the texts that runs in linear time; None for too many texts."""
    for length in (32, 16, 8, 4, 2, 1):
        found = {text[:length] for text in texts if text}
        if 0 < len(found) <= _MAX_BEGINNINGS:
            return re.compile("|".join(map(re.escape, sorted(found))))
    return None


def _load_failure(words: str) -> LoadError:
    return LoadError(f"tokenizer.json: the tokenizers library failed on it ({words}); export the base again")


def _bytes_of(token: str) -> bytes:
    """Return the bytes of a ByteLevel token. Added tokens are plain text."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()
