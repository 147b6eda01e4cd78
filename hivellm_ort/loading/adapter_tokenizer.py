"""Compares the tokenizer in an adapter's folder with that of the base.

A swapped expert uses its base's tokenizer, so the two must agree. A merged expert has a tokenizer of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hivellm_ort.errors import AdapterError, InferenceError, LoadError
from hivellm_ort.text.library_calls import encoded
from hivellm_ort.text.template_source import read_template_source
from hivellm_ort.text.tokenizer_file import parse_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer  # type: ignore[import-untyped, unused-ignore]

__all__ = ["TOKENIZER", "TokenizerDifference", "check_tokenizer", "compare_tokenizers", "read_tokenizer"]

TOKENIZER = "tokenizer.json"

_LOG = logging.getLogger("hivellm_ort")
# Texts for which pre-tokenizers and normalisers differ: digits, case, contractions, spaces, code, scripts, emoji.
_PROBES = (
    "Hello world! It's 2024-01-31, isn't it?\n\n  SELECT a.b, COUNT(*) FROM t WHERE x >= 12345.678;\n",
    "def f(x):\n\treturn {'key': [1, 22, 333, 4444]}  # caf\u00e9, na\u00efve, \u00dcber\n    pass",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 "
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \U0001f642 e\u0301",
)


@dataclass(frozen=True)
class TokenizerDifference:
    """The differences between an adapter's tokenizer and its base's; false if there are none.

    Attributes:
        added: Tokens that the base's tokenizer does not have, with their ids.
        moved: Tokens that have another id in the base's tokenizer.
        split: A text that the two split into different tokens, although their vocabularies are equal; else None.
    """

    added: dict[str, int]
    moved: tuple[str, ...]
    split: str | None

    def __bool__(self) -> bool:
        return bool(self.added or self.moved or self.split)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in an adapter's folder; None if there is none. An unreadable one is logged and ignored."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        return parse_tokenizer(path.read_bytes()).tokenizer
    except (LoadError, OSError) as error:
        _LOG.warning("%s: the tokenizer cannot be read (%s): that of the base is used", path, error)
        return None


def compare_tokenizers(own: Tokenizer, base: Tokenizer) -> TokenizerDifference:
    """Compare an adapter's tokenizer with its base's: ids of tokens, and the tokens of a few texts."""
    mine, theirs = own.get_vocab(with_added_tokens=True), base.get_vocab(with_added_tokens=True)
    added = {token: id_ for token, id_ in mine.items() if token not in theirs}
    moved = tuple(token for token, id_ in mine.items() if theirs.get(token, id_) != id_)
    differing = (text for text in _PROBES if _ids(own, text) != _ids(base, text))
    return TokenizerDifference(added, moved, None if added or moved else next(differing, None))


def check_tokenizer(folder: Path, base: Path | Tokenizer) -> None:
    """Check that an adapter works with its base's tokenizer.

    The padding token does not count, because no prompt contains it.

    Args:
        folder: The adapter's folder; it may have a `tokenizer.json`.
        base: The base's `tokenizer.json`, or the tokenizer read from it.

    Raises:
        AdapterError: Tokens have other ids in the base, or the folder's chat template writes tokens that the base
            does not have.
        LoadError: The folder's chat template or `tokenizer_config.json` cannot be read.
    """
    if isinstance(base, Path) and _same_bytes(folder / TOKENIZER, base):
        return
    own = read_tokenizer(folder)
    theirs = read_tokenizer(base.parent) if isinstance(base, Path) else base
    found = compare_tokenizers(own, theirs) if own is not None and theirs is not None else None
    if not found:
        return
    where = folder / TOKENIZER
    if found.moved:
        raise AdapterError(
            f"{TOKENIZER}: {_listed(found.moved)} have other ids in the base model's tokenizer: the adapter belongs "
            f"to another base model. If {TOKENIZER} is not the one of the training, remove it from the folder"
        )
    if found.split is not None:
        _LOG.warning(
            "%s splits texts differently from the base model's tokenizer, which is used: %r",
            where,
            found.split[:40],
        )
        return
    template = read_template_source(folder)
    added = [token for token in found.added if token != template.tokens.get("pad_token")]
    written = [token for token in added if template.file is not None and token in template.source]
    if written:
        raise AdapterError(
            f"{TOKENIZER}: the base model's tokenizer does not have {_listed(written)}, which {template.file} "
            "writes: export the expert with --merge, which takes the adapter's tokenizer"
        )
    if added:
        _LOG.warning(
            "%s: the base model's tokenizer does not have %s: they are read as plain text; export the expert with "
            "--merge if it was trained on them",
            where,
            _listed(added),
        )


def _same_bytes(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and path.read_bytes() == other.read_bytes()


def _ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Return the ids of a text; None if the tokenizer has no tokens for its characters."""
    try:
        ids: list[int] = encoded(tokenizer, text).ids
    except InferenceError:
        return None
    return ids


def _listed(tokens: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(tokens) - 5} more" if len(tokens) > 5 else ""
    return ", ".join(ascii(token) for token in tokens[:5]) + more
