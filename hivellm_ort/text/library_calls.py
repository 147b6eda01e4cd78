"""Calls the tokenizers library, and turns its panics and bare exceptions into errors of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hivellm_ort.errors import InferenceError, OptionError
from hivellm_ort.panics import panics_as
from hivellm_ort.printable import printable

if TYPE_CHECKING:
    import tokenizers  # type: ignore[import-untyped, unused-ignore]

__all__ = ["decoded", "encoded", "failure"]

_LONG = 1 << 15  # from this number of characters other threads must not wait


def encoded(tokenizer: tokenizers.Tokenizer, text: str, *, special: bool = False) -> tokenizers.Encoding:
    """Encode a text.

    Args:
        tokenizer: Of the tokenizers library.
        text: Any text.
        special: Whether to add the special tokens of the post-processor.

    Raises:
        OptionError: `text` holds a lone surrogate, which UTF-8 cannot encode.
        InferenceError: The library fails on it.
    """
    try:
        with panics_as(failure):
            if len(text) < _LONG:
                return tokenizer.encode(text, add_special_tokens=special)
            # A million characters take a second. Only this call releases the GIL.
            return tokenizer.encode_batch([text], add_special_tokens=special)[0]
    except InferenceError:
        raise
    except TypeError as error:
        raise OptionError("text is not valid Unicode: remove its lone surrogates") from error
    except Exception as error:  # the library raises bare exceptions, so there is no narrower class to catch
        raise failure(printable(str(error), most=200)) from error


def decoded(tokenizer: tokenizers.Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Decode token ids.

    Raises:
        InferenceError: The library fails on them.
    """
    with panics_as(failure):
        text: str = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    return text


def failure(words: str) -> InferenceError:
    """Return the error for a failure of the library; `words` is its message."""
    return InferenceError(
        f"tokenizer.json: the tokenizers library failed on this text ({words}): use a base with another tokenizer"
    )
