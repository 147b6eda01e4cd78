"""From tokens to the text of an answer: characters, reasoning, stop strings."""

from __future__ import annotations

from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.thinking import ReasoningSplitter

__all__ = ["AnswerText"]


class AnswerText:
    """What is certain of the text, token by token.

    Args:
        detokenizer: fresh; turns tokens to text.
        stops: fresh; cuts the text at a stop string. Reasoning is never cut.
        reasoning: fresh; tells a leading think block from the answer; None where the model does not think.
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

    def push(self, token_id: int) -> tuple[str, str, bool]:
        """The reasoning and the text that a token makes certain, and whether a stop string ends the answer."""
        return self._split(self._detokenizer.push(token_id))

    def flush(self) -> tuple[str, str, bool]:
        """As `push`, after the last token: what was held back."""
        thought, text, stopped = self._split(self._detokenizer.flush())
        if self._reasoning is not None and not stopped:
            held_thought, held = self._reasoning.flush()
            more, stopped = self._stops.push(held)
            thought, text = thought + held_thought, text + more
        text += self._stops.flush()
        return thought, text, self._stops.matched is not None

    def _split(self, piece: str) -> tuple[str, str, bool]:
        thought = ""
        if self._reasoning is not None:
            thought, piece = self._reasoning.push(piece)
        text, stopped = self._stops.push(piece)
        return thought, text, stopped
