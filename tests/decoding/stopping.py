"""Text given to a stop matcher piece by piece."""

from __future__ import annotations

from collections.abc import Iterable

from hivellm_ort.decoding.stops import StopMatcher


def feed(matcher: StopMatcher, pieces: Iterable[str]) -> str:
    """Push the pieces until a stop is found, flush, and return all that was shown."""
    shown = ""
    for piece in pieces:
        text, found = matcher.push(piece)
        shown += text
        if found:
            break
    return shown + matcher.flush()
