"""Parses `tokenizer.json`. All tokenizers of the tokenizers library are made here.

The library runs regular expressions, replacements and tables of the file. It cannot be interrupted, because it holds
Python's lock. A separate process would cost every load a tenth of a second, and frozen programs more. So the file is
checked first (`tokenizer_limits`, `patterns`). Then the tokenizer must encode a few texts of growing length in
reasonable time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hivellm_ort.errors import LoadError
from hivellm_ort.panics import panics_as
from hivellm_ort.printable import printable
from hivellm_ort.text.tokenizer_limits import MAX_BYTES, MAX_GROWTH, Work, check_limits
from hivellm_ort.textfile import decode_text

if TYPE_CHECKING:
    import tokenizers  # type: ignore[import-untyped, unused-ignore]

__all__ = ["ParsedTokenizer", "Recall", "parse_tokenizer"]

Recall = Callable[[str, bytes, Callable[[], Mapping[str, float]]], Mapping[str, float]]
"""Remembers what a check found: its name, the bytes, the check; see `Store.recall`."""

_NAME = "tokenizer.json"
_CURE = "export the base again, or update the tokenizers package"
_MOST_SECONDS = 2.0  # for a probe, which usually takes milliseconds
_PROBE_SIZES = (4, 32, 256)  # characters of each run
# Runs are slow: of letters, spaces, line ends, digits, marks, and characters that a normaliser changes.
_PROBE_UNITS = (
    "a",
    "A",
    " ",
    "\n",
    "7",
    ".",
    "a ",
    "\u00e9",
    "e\u0301",
    "\u6771",
    "\U0001f642",
    "\ufdfa",
    "<|",
    "'s",
)


class ParsedTokenizer(NamedTuple):
    """A tokenizer without truncation and padding.

    Attributes:
        tokenizer: The tokenizer of the library.
        work: Cost of its normalisation and pre-tokenization.
    """

    tokenizer: tokenizers.Tokenizer
    work: Work


def parse_tokenizer(content: bytes, *, recall: Recall | None = None) -> ParsedTokenizer:
    """Parse a tokenizer, and check that its time and memory are bounded for any text.

    Truncation and padding are switched off, so that no prompt is cut or padded silently.

    Args:
        content: The file, in UTF-8 or the encoding of its byte order mark.
        recall: Remembers which files are within the limits. They are read only once then. None checks each time.

    Raises:
        LoadError: It is not a tokenizer, exceeds a limit of `tokenizer_limits`, or fails on a text.
    """
    if len(content) > MAX_BYTES:
        raise LoadError(f"{_NAME}: larger than {MAX_BYTES >> 20} MiB; use a tokenizer with fewer tokens")
    try:
        text = decode_text(content)
    except ValueError as error:
        raise _no_json(error) from error

    def check() -> Mapping[str, float]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from error
        return check_limits(document, _NAME)._asdict()

    found = check() if recall is None else recall("tokenizer limits", content, check)
    # A record without one of them was changed by someone: the worst is taken.
    work = Work(max(found.get("growth", float(MAX_GROWTH)), 1.0), bool(found.get("square", True)))
    from tokenizers import Tokenizer

    def failed(words: str) -> LoadError:
        return LoadError(f"{_NAME}: the tokenizers library failed on it ({words}); {_CURE}")

    with panics_as(failed):
        try:
            tokenizer = Tokenizer.from_str(text)
        except (
            Exception
        ) as error:  # the library raises bare exceptions, so there is no narrower class to catch
            raise LoadError(
                f"{_NAME}: not a tokenizer that tokenizers can read ({printable(str(error), most=400)}); {_CURE}"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _probe(tokenizer)
    return ParsedTokenizer(tokenizer, work)


def _no_json(error: Exception) -> LoadError:
    return LoadError(f"{_NAME}: not a tokenizer: not JSON ({error}); {_CURE}")


def _probe(tokenizer: tokenizers.Tokenizer) -> None:
    for size in _PROBE_SIZES:
        text = "".join(unit * size for unit in _PROBE_UNITS)
        start = time.perf_counter()
        try:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.decode(ids)
        except Exception:  # noqa: S112 - a vocabulary without these characters; a request says so by itself
            continue
        if time.perf_counter() - start > _MOST_SECONDS:
            raise LoadError(
                f"{_NAME}: it takes more than {_MOST_SECONDS:g} seconds for {len(text)} characters; use the "
                "tokenizer of a published model"
            )
