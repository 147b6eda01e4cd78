"""Answers that begin with a block of reasoning, `<think>…</think>`, as Qwen3 and others write them.

`ReasoningParser` is the only code that knows the tags.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hivellm_ort.text.tokenizer import Tokenizer

__all__ = [
    "Part",
    "ReasoningParser",
    "ReasoningSplitter",
    "Segment",
    "SplitText",
    "opens_thinking",
    "think_token_ids",
]

_OPEN, _CLOSE = "<think>", "</think>"


class Part(enum.Enum):
    """The parts of an answer, in order."""

    START = enum.auto()
    """Whitespace at the beginning: a block may follow, or the answer."""
    OPEN = enum.auto()
    REASONING = enum.auto()
    CLOSE = enum.auto()
    ANSWER = enum.auto()


class Segment(NamedTuple):
    """Text of one part. The segments of an answer, joined, are its text."""

    part: Part
    text: str


class SplitText(NamedTuple):
    """A piece of an answer, split into reasoning and text."""

    reasoning: str
    text: str


def opens_thinking(prompt: str) -> bool:
    """Return whether the answer to `prompt`, a rendered template, begins inside a block of reasoning."""
    return prompt.rstrip().endswith(_OPEN)


def think_token_ids(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return the ids of `<think>` and `</think>`; None if one of them is not a token of the model."""
    open_id, close_id = tokenizer.token_to_id(_OPEN), tokenizer.token_to_id(_CLOSE)
    return None if open_id is None or close_id is None else (open_id, close_id)


class ReasoningParser:
    """Finds the block of reasoning at the beginning of an answer that arrives in pieces.

    Only whitespace may precede `<think>`. Without that tag everything is the answer. Without a `</think>` after it
    everything is reasoning. Later tags are text of the answer.

    Args:
        inside: The answer begins inside the block, because the prompt opened it (see `opens_thinking`).

    Attributes:
        held: The end of the text, if it may be the beginning of a tag. It is not in a segment yet.
        part: The part that follows: `START`, `REASONING` or `ANSWER`.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self.held = ""
        self.part = Part.START
        self._without_tag = Part.REASONING if inside else Part.ANSWER

    @property
    def open(self) -> bool:
        """Whether the block of reasoning has begun and not ended."""
        part = self._without_tag if self.part is Part.START else self.part
        return part is Part.REASONING

    def push(self, piece: str) -> list[Segment]:
        """Take the next piece of the answer and return the new segments. None of them is empty."""
        segments: list[Segment] = []
        text, self.held = self.held + piece, ""
        if self.part is Part.START:
            body = text.lstrip()
            segments.append(Segment(Part.START, text[: len(text) - len(body)]))
            text = self._begin(body, segments)
        if self.part is Part.REASONING:
            text = self._read_reasoning(text, segments)
        if self.part is Part.ANSWER:
            segments.append(Segment(Part.ANSWER, text))
        return [segment for segment in segments if segment.text]

    def flush(self) -> list[Segment]:
        """Return the held text. Call it once, after the last piece."""
        text, self.held = self.held, ""
        if self.part is Part.START:
            self.part = self._without_tag
        return [Segment(self.part, text)] if text else []

    def _begin(self, text: str, segments: list[Segment]) -> str:
        """Decide whether the answer opens a block, as soon as possible. Return the rest of the text."""
        if text.startswith(_OPEN):
            segments.append(Segment(Part.OPEN, _OPEN))
            self.part = Part.REASONING
            return text[len(_OPEN) :]
        if not _OPEN.startswith(text):
            self.part = self._without_tag
            return text
        self.held = text
        return ""

    def _read_reasoning(self, text: str, segments: list[Segment]) -> str:
        """Take reasoning and the end of the block. Return the text after it."""
        before, close, after = text.partition(_CLOSE)
        if close:
            segments += [Segment(Part.REASONING, before), Segment(Part.CLOSE, close)]
            self.part = Part.ANSWER
            return after
        certain = len(text) - max(n for n in range(len(_CLOSE)) if text.endswith(_CLOSE[:n]))
        segments.append(Segment(Part.REASONING, text[:certain]))
        self.held = text[certain:]
        return ""


class ReasoningSplitter:
    r"""Separates the reasoning at the beginning of an answer from the text after it, piece by piece.

    The joined results of `push` and `flush` do not depend on the division into pieces. The tags belong to neither
    part. Line breaks at both ends of the reasoning and before the text are dropped.

    Args:
        inside: As for `ReasoningParser`.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._parser = ReasoningParser(inside=inside)
        self._space = ""  # whitespace at the beginning, until its part is known
        self._line_breaks = ""  # at the end of the reasoning; dropped if the block ends here
        self._fresh = inside  # line breaks are dropped: nothing of this part was returned yet

    @property
    def open(self) -> bool:
        """Whether the block of reasoning has begun and not ended."""
        return self._parser.open

    def push(self, piece: str) -> SplitText:
        """Take the next piece of the answer and return the new text, possibly empty."""
        return self._split(self._parser.push(piece))

    def flush(self) -> SplitText:
        """Return the held text. Call it once, after the last piece."""
        return self._split(self._parser.flush())

    def _split(self, segments: list[Segment]) -> SplitText:
        reasoning = text = ""
        # The empty segment moves whitespace from the start to a part that begins without a tag.
        for part, piece in [*segments, Segment(self._parser.part, "")]:
            match part:
                case Part.START:
                    self._space += piece
                case Part.OPEN:
                    self._space, self._fresh = "", True
                case Part.REASONING:
                    reasoning += self._reasoning(piece)
                case Part.CLOSE:
                    reasoning += self._reasoning("")
                    self._line_breaks, self._fresh = "", True
                case Part.ANSWER:
                    text += self._text(piece)
        return SplitText(reasoning, text)

    def _reasoning(self, piece: str) -> str:
        """Return reasoning up to the line breaks at its end, which are held."""
        piece, self._space, self._line_breaks = self._space + self._line_breaks + piece, "", ""
        if self._fresh:
            piece = piece.lstrip("\n")
        decided = piece.rstrip("\n")
        self._line_breaks = piece[len(decided) :]
        self._fresh = self._fresh and not decided
        return decided

    def _text(self, piece: str) -> str:
        piece, self._space = self._space + piece, ""
        if self._fresh:
            piece = piece.lstrip("\n")
        self._fresh = self._fresh and not piece
        return piece
