"""Markers in what a user writes: their text stays text, so that no message can open or close a turn.

A marker is an added token that is marked special or written `<|…|>`, such as `<|im_start|>`; the second half is for
DeepSeek, whose turn markers are not marked special. Tags such as `<think>` are no markers: models write them
themselves, and earlier turns hold them.
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
    """Return whether the added token is one that only a chat template may write."""
    return bool(token.special) or _BARS.fullmatch(token.content) is not None


def hide_markers(value: Any, find: Callable[[str], Spans]) -> tuple[Any, dict[str, str]]:
    """Return a copy of `value` in which an unguessable placeholder stands for each marker's text.

    Args:
        value: Messages, or any value made of lists, mappings and texts.
        find: Returns where a text holds markers.

    Returns:
        The copy, and the text that each placeholder stands for; nothing in it if there is no marker.
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
    """Return `text` with every placeholder of `hide_markers` replaced by what it stands for."""
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
    """A twin of a tokenizer in which markers have unguessable names, so that their own texts are plain text.

    The twin shares the model, so it costs some tens of milliseconds and little memory.

    Args:
        tokenizer: The tokenizer to encode as.
        markers: The ids of its markers.

    Attributes:
        names: What stands for each marker in a text to encode.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, markers: frozenset[int]) -> None:
        self._nonce = nonce = os.urandom(16).hex()
        self.names = {marker: f"<{nonce}:{marker}>" for marker in markers}
        self._tokenizer = tokenizer

    def named(self, text: str) -> list[int]:
        """Return the markers whose names are in `text`, in their order."""
        # One pattern for all: Python keeps each that was compiled, and a new one for every base would fill its cache.
        return [int(match[2]) for match in _NAMED.finditer(text) if match[1] == self._nonce]

    def encode(self, text: str) -> list[int]:
        """Return the tokenizer's ids of `text`, where only `names` are read as markers."""
        twin, own = self._twin
        ids = encoded(twin, text).ids
        return [own.get(token_id, token_id) for token_id in ids]

    @cached_property
    def _twin(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The twin, and the tokenizer's ids of its added tokens; made for the first text that needs it."""
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
