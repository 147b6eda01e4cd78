"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hivellm_ort.decoding.nesting import Level, Nesting
from hivellm_ort.errors import OptionError
from hivellm_ort.ranges import MAX_PUBLISHED_STOPS, MAX_STOP_LENGTH, MAX_STOPS
from hivellm_ort.text.reasoning import Part, ReasoningParser, Segment

__all__ = ["StopMatcher"]

_CLOSING = frozenset(")]};`\"'")


class StopMatcher:
    r"""Cuts a stream of text at the earliest stop.

    The joined results of `push` and `flush` are the text up to the first stop, without the stop, for any division
    into pieces. So a complete stop waits while a stop that began earlier may still become complete. Of stops that
    begin at the same character the shortest wins, because it is complete first.

    Soft stops are the stops of a package's manifest. They must not spoil a good answer, so they do not count inside a
    string literal, nor if only whitespace precedes them. A soft stop of whitespace counts only outside brackets and
    code fences. A soft stop of closing punctuation, such as `}`, `);` or the end of a code fence, stays in the text
    and counts only if nothing is open after it. `Nesting` tracks what is open.

    No stop counts in a think block at the beginning (see `ReasoningParser`) and in the whitespace after it.

    Args:
        stops: At most 16 texts of 1 to 1024 characters. Without any stops nothing is held back.
        soft: At most 64 of these, as above.
        include_stop: Whether the text includes the stop.

    Raises:
        OptionError: There are too many stops, or one is empty or too long.
    """

    matched: str | None
    """The stop that was found, or None."""
    include_stop: bool
    """Whether the text includes the stop."""

    def __init__(
        self,
        stops: Sequence[str],
        soft: Sequence[str] = (),
        *,
        include_stop: bool = False,
    ) -> None:
        _check("stop", stops, MAX_STOPS)
        _check("soft stop", soft, MAX_PUBLISHED_STOPS)
        # Order of precedence at the same position: kept stops, then shorter ones.
        kinds = [_Stop(stop) for stop in set(stops)] + [_soft(stop) for stop in set(soft) - set(stops)]
        self._stops = sorted(kinds, key=lambda stop: (not stop.kept, len(stop.text), stop.text))
        # In languages without backslash escapes, such as SQL, the first reading may miss the end of a literal.
        self._readings = [Nesting("\"'`"), Nesting('"`')] if set(soft) - set(stops) else []
        self.include_stop = include_stop
        self._held = ""
        self._levels = [Level.LITERAL]  # before each held character, and after the last
        self._begun = False  # a character other than whitespace has come
        self._parser = ReasoningParser()
        self._early = 0  # number of characters held by the parser that are shown already
        self._gap = False  # the think block has ended, and only whitespace has come since
        self.matched = None

    def push(self, piece: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Args:
            piece: Any text; may be empty.

        Returns:
            The text that may be shown now, and whether a stop was found. After a stop nothing is shown.
        """
        if self.matched is not None:
            return "", True
        if not self._stops:
            return piece, False
        shown = self._show(self._parser.push(piece))
        return shown, self.matched is not None

    def flush(self) -> str:
        """Return the held text after the last piece. `matched` is set if it contains a stop."""
        if self.matched is not None:
            return ""
        shown = self._show(self._parser.flush())
        found = self._first(self._held)
        if found is not None:
            self.matched = found.stop
        shown += self._held if found is None else self._held[: found.end]
        self._held = ""
        return shown

    def _show(self, segments: Sequence[Segment]) -> str:
        """Return the text of the segments that may be shown: the think block unchanged, the answer up to a stop."""
        shown = ""
        for part, text in segments:
            if part in (Part.START, Part.ANSWER):
                answer = text.lstrip() if self._gap else text
                self._gap = self._gap and not answer
                shown += text[: len(text) - len(answer)] + (self._search(answer) if answer else "")
                if self.matched is not None:
                    break
            else:
                shown, self._held, self._levels = shown + self._held + text, "", self._levels[-1:]
                self._gap = part is Part.CLOSE
        # In the block, a possible beginning of a tag is shown at once.
        inside = self._parser.part is Part.REASONING and self.matched is None
        held = self._parser.held if inside else ""
        shown, self._early = (shown + held)[self._early :], len(held)
        return shown

    def _search(self, piece: str) -> str:
        """Take text of the answer and return what may be shown."""
        text = self._held + piece
        self._read(piece)
        found = self._first(text)
        cutting = self._pending(text, kept=False)
        if found is not None and found.place <= cutting:
            self._held, self.matched = "", found.stop
            return text[: found.end]
        pending = min(cutting, self._pending(text, kept=True), len(text) if found is None else found.start)
        self._held, self._levels = text[pending:], self._levels[pending:]
        return text[:pending]

    def _read(self, piece: str) -> None:
        """Record what is open after each character. While there is only whitespace, nothing counts."""
        for character in piece if self._readings else "":
            for reading in self._readings:
                reading.push(character)
            self._begun = self._begun or not character.isspace()
            open_now = max(reading.level for reading in self._readings)
            self._levels.append(open_now if self._begun else Level.LITERAL)

    def _first(self, text: str) -> _Found | None:
        """Return the complete stop that ends the text, if any."""
        first = None
        for stop in self._stops:
            start = text.find(stop.text)
            while start >= 0 and not self._counts(stop, start + len(stop.text) if stop.kept else start):
                start = text.find(stop.text, start + 1)
            end = start + len(stop.text)
            place = end if stop.kept else start
            if start >= 0 and (first is None or place < first.place):
                first = _Found(place, start, end if self.include_stop else place, stop.text)
        return first

    def _pending(self, text: str, *, kept: bool) -> int:
        """Return the start of the earliest stop that may be incomplete at the end of the text, else the end."""
        first = len(text)
        for stop in self._stops:
            if stop.kept != kept:
                continue
            place = text.find(stop.text[0], max(0, len(text) - len(stop.text) + 1))
            while 0 <= place < first:
                if stop.text.startswith(text[place:]) and (kept or self._counts(stop, place)):
                    first = place
                place = text.find(stop.text[0], place + 1)
        return first

    def _counts(self, stop: _Stop, place: int) -> bool:
        return stop.most is None or self._levels[place] <= stop.most


class _Stop(NamedTuple):
    """A stop.

    Attributes:
        text: Its text.
        kept: Whether the text ends after it instead of before it.
        most: The highest level at which it counts; None for any.
    """

    text: str
    kept: bool = False
    most: Level | None = None


class _Found(NamedTuple):
    """A complete stop: where it ends the text, where it starts, where the shown text ends, and its text."""

    place: int
    start: int
    end: int
    stop: str


def _soft(text: str) -> _Stop:
    if text.isspace():
        return _Stop(text, most=Level.COMMENT)
    if all(character in _CLOSING or character.isspace() for character in text):
        return _Stop(text, kept=True, most=Level.NOTHING)
    return _Stop(text, most=Level.BRACKET)


def _check(kind: str, stops: Sequence[str], most: int) -> None:
    if isinstance(stops, str):
        raise OptionError(f"{kind} strings must be a list, not one text: write [stop]")
    if len(stops) > most:
        raise OptionError(f"{len(stops)} {kind} strings are too many: at most {most}")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise OptionError(
                f"{kind} string {index} has {len(stop)} characters: it must have 1 to {MAX_STOP_LENGTH}"
            )
        if not stop.isascii() and any("\ud800" <= char <= "\udfff" for char in stop):
            raise OptionError(f"{kind} string {index} holds a lone surrogate, which no answer has: remove it")
