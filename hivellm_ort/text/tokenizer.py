"""The tokenizer of a base bundle, read from `tokenizer.json` by the `tokenizers` library.

Of `tokenizer_config.json` only the special tokens' names matter (see `hivellm_ort.text.template`).
Its `clean_up_tokenization_spaces` is ignored on purpose: it deletes the space before `.`, `,`, `!` and `'s`
in decoded text, and an expert's answer is code, where that space may sit inside a string literal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from hivellm_ort.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import tokenizers  # type: ignore[import-untyped, unused-ignore]

__all__ = ["TextTokenizer", "Tokenizer"]

# What the ByteFallback decoder reads as one byte (its parser also takes a sign, as in `<0x+A>`).
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f+][0-9A-Fa-f]>")


class Tokenizer(Protocol):
    """What the runtime needs of a tokenizer; tests put a fake in its place."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with nothing put before or after them."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of the token written `token`, or None if there is none."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """Return how the token is written in the vocabulary, or None for an id without a token."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Return whether `decode(…, skip_special_tokens=True)` leaves the token out."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Return whether the token is one byte whose text depends on the byte tokens beside it."""
        ...


class TextTokenizer:
    """A `tokenizers.Tokenizer` without truncation, padding or added special tokens.

    Args:
        tokenizer: The tokenizer to wrap; its truncation and padding are switched off in place.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        # A prompt is never cut or padded silently; the context check is the caller's.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        # Asked of the decoder itself, because a ByteFallback may sit anywhere in a sequence of decoders.
        decoder = tokenizer.decoder
        self._gathers_bytes = decoder is not None and decoder.decode(["<0x41>"]) == "A"

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read `tokenizer.json` in `folder`.

        Args:
            folder: The unpacked base bundle or expert package.

        Raises:
            LoadError: If the file is missing, unreadable or not a tokenizer.
        """
        from tokenizers import Tokenizer as FastTokenizer

        try:
            content = (folder / "tokenizer.json").read_bytes()
        except OSError as error:
            raise LoadError(
                f"tokenizer.json: cannot be read ({error.strerror}); "
                "export the base again, or unpack the package again"
            ) from error
        try:
            # The library raises bare exceptions, so there is no narrower class to catch.
            return cls(FastTokenizer.from_buffer(content))
        except Exception as error:
            raise LoadError(
                f"tokenizer.json: not a tokenizer that tokenizers can read ({error}); "
                "export the base again, or update the tokenizers package"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's logits may be wider, padded with unused rows."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with nothing put before or after them.

        Special tokens written in the text are read as special tokens, as Hugging Face does: a rendered chat
        template depends on it.

        Args:
            text: Any text; empty text gives an empty list.

        Raises:
            ValueError: If `text` holds a lone surrogate, which no UTF-8 text can.
        """
        try:
            token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError("text is not valid Unicode: remove its lone surrogates") from error
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Args:
            token_ids: Ids of at least 0; ids without a token add nothing.
            skip_special_tokens: Leave special tokens out of the text.
        """
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        """Return the id of the token written `token`, or None if there is none."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """Return how the token is written in the vocabulary, or None for an id without a token."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is an added token marked special, such as `<|im_end|>`."""
        return token_id in self._special_ids

    def is_byte(self, token_id: int) -> bool:
        """Return whether the token is `<0xNN>` and the decoder gathers such tokens into characters."""
        if not self._gathers_bytes:
            return False
        token = self.id_to_token(token_id)
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None
