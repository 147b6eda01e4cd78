"""Text of an answer as it grows, token by token.

`tokenizers.decoders.DecodeStream` is not used: it cannot hand out what it holds at the end, raises when a run
of `<0xNN>` tokens turns out not to be UTF-8, and decodes ever longer lists while the text ends in U+FFFD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from hivellm_ort.text.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens decoded again before each new one. A UTF-8 decoder that starts anywhere agrees with one that started
# earlier after 4 bytes, and other decoders look back one token, so 8 tokens are more than enough.
_CONTEXT = 8
# The window is cut back to the context only when it has grown to this, not at every token.
_WINDOW = 24


class IncrementalDetokenizer:
    """Turns token ids into pieces of text that are never taken back.

    The pieces of `push`, then `flush`, make up exactly `tokenizer.decode(all ids)`. Held back are only what a
    later token can still change: a last U+FFFD, which may be the start of a character, and a run of `<0xNN>`
    tokens, which becomes text only as a whole. The cost of a token does not grow with the answer.

    Exact for decoders whose work on a token depends on its neighbours only: ByteLevel, Metaspace,
    ByteFallback, WordPiece, BPE, CTC, Fuse, Strip of a leading space, Replace within a token, and sequences of them.

    Args:
        tokenizer: Decodes the ids.
        skip_special_tokens: Leave special tokens out of the text, as in `tokenizer.decode`.
        kept: Special tokens that are part of the text after all.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, kept: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._kept = kept
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that are out already
        self._byte_run: list[int] = []

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that is now decided, possibly none.

        Args:
            token_id: The next id of the answer, at least 0.
        """
        # Tokens without text never reach the window: it must hold tokens that the decoder really sees.
        skipped = self._skip_special_tokens and self._tokenizer.is_special(token_id)
        if skipped and token_id not in self._kept:
            return ""
        if self._tokenizer.is_byte(token_id):
            self._byte_run.append(token_id)
            return ""
        if self._tokenizer.id_to_token(token_id) is None:
            return ""
        text = self._extend([token_id])
        decided = len(text) - text.endswith(_REPLACEMENT)
        # Not below what was shown: that keeps the pieces of a decoder outside the list above in order.
        piece = text[self._shown : decided]
        self._shown = max(self._shown, decided)
        if len(self._window) >= _WINDOW:
            self._cut_back(held=len(text) - self._shown)
        return piece

    def flush(self) -> str:
        """Return the text still held, and start anew: call it after the answer's last token."""
        piece = self._extend([])[self._shown :]
        self._window, self._shown = [], 0
        return piece

    def _extend(self, token_ids: list[int]) -> str:
        """Put the run of byte tokens and `token_ids` into the window and return the window's text."""
        self._window += self._byte_run + token_ids
        self._byte_run = []
        return self._decode()

    def _decode(self) -> str:
        # The window has no special tokens but those that are kept.
        skip = self._skip_special_tokens and not self._kept
        return self._tokenizer.decode(self._window, skip_special_tokens=skip)

    def _cut_back(self, held: int) -> None:
        """Keep only the context; `held` characters at its end are not out yet."""
        start = len(self._window) - _CONTEXT
        # Half a run of byte tokens would decode to other text; the last token is never one of them.
        while self._tokenizer.is_byte(self._window[start]):
            start += 1
        self._window = self._window[start:]
        self._shown = len(self._decode()) - held
