"""The options of one generation, the same for every way of asking for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

__all__ = ["GenerateOptions"]


class GenerateOptions(TypedDict, total=False):
    """Keyword options of `Expert.generate` and its relatives; `None` is the same as leaving one out."""

    schema: str | None
    """What the answer is about (DDL, graph schema, JSON schema), put into the system message."""
    system: str | None
    """The system message, instead of the one made from the expert's capabilities."""
    messages: Sequence[Mapping[str, str]] | None
    """Earlier turns, `role` and `content` each."""
    temperature: float | None
    """0 is greedy. Default: the manifest's, else 0."""
    top_p: float | None
    """Nucleus in (0, 1]. Default: the manifest's, else 1."""
    top_k: int | None
    """0 is off. Default: the manifest's, else 0."""
    max_tokens: int | None
    """Most tokens to generate. Default: the manifest's `max_new_tokens`, else 512, as far as the context has room."""
    stop: str | Sequence[str] | None
    """Strings that end the answer and are not part of it."""
    seed: int | None
    """Of the random numbers; the same request with the same seed gives the same tokens."""
