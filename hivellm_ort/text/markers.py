"""Keeps markers in messages as plain text, so that no message can open or close a turn.

A marker is an added token that is special or written `<|…|>`, such as `<|im_start|>`. The second form is for
DeepSeek, whose turn markers are not special. Tags such as `<think>` are not markers: models write them, and earlier
turns contain them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hivellm_ort.panics import panics_as
from hivellm_ort.text.library_calls import encoded, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import tokenizers  # type: ignore[import-untyped, unused-ignore]

    Spans = Sequence[tuple[int, int]]

__all__ = ["LiteralEncoder", "hide_markers", "is_marker", "replace_spans", "restore_markers"]

_NAMED = re.compile("<([0-9a-f]{32}):([0-9]+)>")
_BARS = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)


def is_marker(token: tokenizers.AddedToken) -> bool:
    """Return whether only a chat template may write this added token."""
    return bool(token.special) or _BARS.fullmatch(token.content) is not None


def hide_markers(value: Any, find: Callable[[str], Spans]) -> tuple[Any, dict[str, str]]:
    """Return a copy of `value` with a random placeholder for each marker.

    Args:
        value: Messages, or any value made of lists, mappings and texts.
        find: Returns the spans of markers in a text.

    Returns:
        The copy, and the marker of each placeholder.
    """
    placeholders: dict[str, str] = {}

    def placeholder(text: str) -> str:
        return placeholders.setdefault(text, os.urandom(16).hex())

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            return replace_spans(value, find(value), placeholder)
        if isinstance(value, Mapping):
            return {hidden(key): hidden(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [hidden(item) for item in value]
        return value

    return hidden(value), {name: text for text, name in placeholders.items()}


def restore_markers(text: str, literals: Mapping[str, str]) -> str:
    """Return `text` with the placeholders of `hide_markers` replaced by their markers."""
    for placeholder, literal in literals.items():
        text = text.replace(placeholder, literal)
    return text


def replace_spans(text: str, spans: Spans, replacement: Callable[[str], str]) -> str:
    """Return `text` with each of the ascending `spans` replaced by `replacement` of its text."""
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], replacement(text[start:stop])]
        end = stop
    return "".join([*pieces, text[end:]])


class LiteralEncoder:
    """A copy of a tokenizer with random names for its markers, so that their usual texts are plain text.

    The copy shares the model: it takes some tens of milliseconds and little memory.

    Args:
        tokenizer: The tokenizer to encode as.
        markers: The ids of its markers.

    Attributes:
        names: The random name of each marker.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, markers: frozenset[int]) -> None:
        self._nonce = nonce = os.urandom(16).hex()
        self.names = {marker: f"<{nonce}:{marker}>" for marker in markers}
        self._tokenizer = tokenizer

    def named(self, text: str) -> list[int]:
        """Return the markers whose names are in `text`, in order."""
        # One pattern for all bases, because one per base would fill the cache of `re`.
        return [int(match[2]) for match in _NAMED.finditer(text) if match[1] == self._nonce]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with only `names` read as markers."""
        twin, own = self._twin
        ids = encoded(twin, text).ids
        return [own.get(token_id, token_id) for token_id in ids]

    @cached_property
    def _twin(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The copy, and the original ids of its added tokens. It is made on first use."""
        from tokenizers import AddedToken, Tokenizer

        tokenizer = self._tokenizer
        twin = Tokenizer(tokenizer.model)
        if tokenizer.normalizer is not None:
            twin.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            twin.pre_tokenizer = tokenizer.pre_tokenizer
        added = {
            token_id: AddedToken(
                self.names.get(token_id, token.content),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        with panics_as(failure):
            twin.add_tokens(list(added.values()))
        return twin, {twin.token_to_id(token.content): token_id for token_id, token in added.items()}
