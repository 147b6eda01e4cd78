"""Turns tokens into the text of an answer: detokenizes, separates reasoning, applies stop strings."""

from __future__ import annotations

from bisect import bisect_left

from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.reasoning import ReasoningSplitter

__all__ = ["AnswerText"]


class AnswerText:
    """The text of an answer, as far as it is certain, token by token.

    Args:
        detokenizer: New; turns tokens into text.
        stops: New; cuts the text at a stop string. Reasoning is never cut.
        reasoning: New; separates a leading think block from the answer. None if the model does not think.
    """

    def __init__(
        self,
        detokenizer: IncrementalDetokenizer,
        stops: StopMatcher,
        reasoning: ReasoningSplitter | None = None,
    ):
        self._detokenizer = detokenizer
        self._stops = stops
        self._reasoning = reasoning
        self._searched = 0  # characters searched for stops
        self._shown = 0  # characters returned
        self._ends: list[int] = []  # `_searched` after each token

    @property
    def thinking(self) -> bool:
        """Whether the next token goes on with a think block."""
        return self._reasoning is not None and self._reasoning.open

    def push(self, token_id: int) -> tuple[str, str, bool]:
        """Take the next token. Return new reasoning, new text, and whether a stop string ended the answer."""
        split = self._split(self._detokenizer.push(token_id))
        self._ends.append(self._searched)
        return split

    def flush(self, *, cut: bool = False) -> tuple[str, str, bool]:
        """Return the held text after the last token, as `push` does.

        Args:
            cut: Leave out an incomplete character at the end, instead of returning U+FFFD.
        """
        held = self._detokenizer.flush()
        thought, text, stopped = self._split(held.rstrip("\N{REPLACEMENT CHARACTER}") if cut else held)
        if self._reasoning is not None and not stopped:
            held_thought, held = self._reasoning.flush()
            more, stopped = self._search(held)
            thought, text = thought + held_thought, text + more
        last = self._stops.flush()
        self._shown += len(last)
        return thought, text + last, self._stops.matched is not None

    def surplus(self) -> int | None:
        """Return the number of tokens after the end of the returned text; None if it ends inside a token."""
        count = bisect_left(self._ends, self._shown) + 1 if self._shown else 0
        return len(self._ends) - count if not count or self._ends[count - 1] == self._shown else None

    def close(self, token_id: int) -> tuple[str, str]:
        """End the answer with a token that is a stop string. Return the rest of reasoning and text."""
        thought, text, _ = self.flush()
        stop = self._detokenizer.push(token_id) + self._detokenizer.flush()
        return thought, text + stop * self._stops.include_stop

    def _split(self, piece: str) -> tuple[str, str, bool]:
        thought = ""
        if self._reasoning is not None:
            thought, piece = self._reasoning.push(piece)
        return thought, *self._search(piece)

    def _search(self, piece: str) -> tuple[str, bool]:
        text, stopped = self._stops.push(piece)
        self._searched += len(piece)
        self._shown += len(text)
        return text, stopped
