"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StopMatcher"]

_MAX_STOPS = 16
_MAX_LENGTH = 1024


class StopMatcher:
    """Cuts a stream of text at the earliest occurrence of any stop string.

    What `push` and `flush` return, joined, is the whole text up to the first place where a stop begins,
    however the text was cut into pieces; the stop itself is left out. A stop that is complete therefore waits
    while one that began before it may still become complete. Of stops that begin at the same place the
    shortest is the one found, because it is complete first.

    Args:
        stops: At most 16 texts of 1 to 1024 characters; none means that nothing is ever held back.

    Raises:
        ValueError: If there are too many stops, or one is empty or too long.
    """

    matched: str | None
    """The stop that was found, None as long as none was."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise ValueError("stop strings must be a list, not one text: write [stop]")  # noqa: TRY004
        if len(stops) > _MAX_STOPS:
            raise ValueError(f"{len(stops)} stop strings are too many: at most {_MAX_STOPS}")
        for index, stop in enumerate(stops):
            if not 1 <= len(stop) <= _MAX_LENGTH:
                raise ValueError(
                    f"stop string {index} has {len(stop)} characters: it must have 1 to {_MAX_LENGTH}"
                )
        # Shortest first, so that of equal places the shortest stop wins.
        self._stops = sorted(set(stops), key=lambda stop: (len(stop), stop))
        self._held = ""
        self.matched = None

    def push(self, piece: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Args:
            piece: Any text, also none.

        Returns:
            The text that may be shown now, and whether a stop was found: nothing is shown after one.
        """
        if self.matched is not None:
            return "", True
        text = self._held + piece
        place, stop = self._first(text)
        pending = self._pending(text)
        if stop is not None and place <= pending:
            self._held, self.matched = "", stop
            return text[:place], True
        self._held = text[pending:]
        return text[:pending], False

    def flush(self) -> str:
        """Return what was held, after the last piece; `matched` tells if a stop was found in it."""
        place, self.matched = self._first(self._held) if self.matched is None else (0, self.matched)
        text, self._held = self._held[:place], ""
        return text

    def _first(self, text: str) -> tuple[int, str | None]:
        """Return where the earliest complete stop begins, and that stop; else the end of the text."""
        first: tuple[int, str | None] = (len(text), None)
        for stop in self._stops:
            # Only a place before the best one so far counts, so a longer stop never wins a tie.
            place = text.find(stop, 0, first[0] + len(stop) - 1)
            if place >= 0:
                first = (place, stop)
        return first

    def _pending(self, text: str) -> int:
        """Return where the earliest stop begins that the end of the text cuts off; else that end."""
        first = len(text)
        for stop in self._stops:
            place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= place < first:
                if stop.startswith(text[place:]):
                    first = place
                place = text.find(stop[0], place + 1)
        return first
