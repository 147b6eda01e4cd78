"""Reads markers only where the chat template wrote them. The text of messages stays text.

A message can forge a marker by containing it, or a part of it that the template or another text completes:
`<function=`, a name that ends with `<|im_end|`, and `>`. So the template is rendered a second time with random
names for the markers in its source. A marker without such a name was not written by the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.markers import hide_markers, restore_markers

if TYPE_CHECKING:
    from hivellm_ort.text.template import ChatTemplate
    from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["Guard"]

Render = Callable[["ChatTemplate", Any], str]

_SIGNS = re.compile(r"[^\w\s]")


class Guard:
    """Encodes renderings of one template with one tokenizer.

    Args:
        template: The template.
        tokenizer: The tokenizer of the same bundle.
    """

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._names = tokenizer.marker_names
        self._markers = {name: marker for marker, name in self._names.items()}
        self._twin: ChatTemplate | None = None
        try:
            self._twin = template.renamed(self._names)
        except LoadError:  # the name differs in characters and length from its marker
            return

    def encode(self, text: str, token_ids: list[int], given: Any, render: Render) -> list[int]:
        """Return the token ids of a rendering. Only markers of the template become marker tokens.

        Args:
            text: The rendering.
            token_ids: Its ids with all markers as tokens.
            given: The rendered value, made of lists, mappings and texts.
            render: Renders a template with such a value.

        Raises:
            InferenceError: The origin of a marker is unclear, or the tokenizer cannot encode it as plain text.
        """
        named = self._named(given, render)
        if named is not None and restore_markers(named, self._markers) == text:
            if self._tokenizer.named_markers(named) == self._tokenizer.markers_of(token_ids):
                return token_ids
            if not self._composes(given, render):
                return self._tokenizer.encode_named(named)
        return self._encode_hidden(text, token_ids, given, render)

    def _named(self, given: Any, render: Render) -> str | None:
        if self._twin is None:
            return None
        try:
            return render(self._twin, given)
        except InferenceError:
            return None

    def _composes(self, given: Any, render: Render) -> bool:
        """Return whether the template builds markers from parts, as `'<|' + role + '|>'` does."""
        harmless = self._harmless(given)
        named = self._named(harmless, render)
        if named is None:
            return True
        composes = self._tokenizer.named_markers(named) != self._tokenizer.markers(
            render(self._template, harmless)
        )
        if composes:
            self._twin = None
        return composes

    def _encode_hidden(self, text: str, token_ids: list[int], given: Any, render: Render) -> list[int]:
        """As `encode`, for templates whose markers cannot be renamed. Instead, markers in the messages are hidden."""
        hidden, literals = hide_markers(given, self._tokenizer.marker_spans)
        safe = render(self._template, hidden) if literals else text
        if restore_markers(safe, literals) != text:
            found = next(iter(literals.values()))
            raise InferenceError(
                f"a message holds the text of a special token ({found!r}), which this chat template does not pass on "
                "as it is: remove it from the message"
            )
        own = self._tokenizer.markers(render(self._template, self._harmless(given)))
        if self._tokenizer.markers(safe) != own:
            raise InferenceError(
                "a message and the words of the chat template around it make the text of a special token together: "
                "remove '<', '>' and '|' at the ends of its texts"
            )
        return self._tokenizer.encode_literals(safe, literals) if literals else token_ids

    def _harmless(self, given: Any) -> Any:
        """Return a copy of `given` with only words and whitespace in its texts."""
        hidden, _ = hide_markers(given, self._tokenizer.marker_spans)
        return _scrubbed(hidden)


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return _SIGNS.sub(" ", value)
    if isinstance(value, Mapping):
        return {_scrubbed(key): _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item) for item in value]
    return value
