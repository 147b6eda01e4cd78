"""Answers that begin with a block of reasoning, `<think>…</think>`, as Qwen3 and others write them."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ReasoningSplitter", "SplitText", "opens_thinking"]

_OPEN, _CLOSE = "<think>", "</think>"


class SplitText(NamedTuple):
    """A piece of an answer, divided."""

    reasoning: str
    text: str


def opens_thinking(prompt: str) -> bool:
    """Return whether the answer to `prompt`, a rendered template, begins inside a block of reasoning."""
    return prompt.rstrip().endswith(_OPEN)


class ReasoningSplitter:
    r"""Separates the reasoning at the beginning of an answer from the text after it, piece by piece.

    What `push` and `flush` return, joined, does not depend on how the answer was cut into pieces. The tags
    belong to neither part, and neither do line breaks at the ends of the reasoning and before the text. Without a
    `<think>` at the beginning, white space aside, everything is text; without a `</think>` after it,
    everything is reasoning. Tags further on are text.

    Args:
        inside: The answer begins inside the block, because the prompt opened it (see `opens_thinking`).
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._phase: Literal["start", "reasoning", "text"] = "start"
        self._held = ""  # what later pieces may turn into a tag, or into line breaks to drop
        self._fresh = True  # line breaks at the front are dropped: nothing of this part is out yet

    @property
    def open(self) -> bool:
        """Whether the block of reasoning has begun and not ended."""
        return self._phase == "reasoning" or (self._phase == "start" and self._inside)

    def push(self, piece: str) -> SplitText:
        """Take the next piece of the answer and return what is now decided, possibly nothing."""
        self._held += piece
        if self._phase == "start":
            self._begin()
        reasoning = self._reasoning() if self._phase == "reasoning" else ""
        text = self._text() if self._phase == "text" else ""
        return SplitText(reasoning, text)

    def flush(self) -> SplitText:
        """Return what is still held: call it once, after the answer's last piece."""
        held, self._held = self._held, ""
        if self.open:
            return SplitText(held.strip("\n") if self._fresh else held.rstrip("\n"), "")
        return SplitText("", held)

    def _begin(self) -> None:
        """Leave the start as soon as it is clear whether the answer opens a block."""
        body = self._held.lstrip()
        if body.startswith(_OPEN):
            self._held = body[len(_OPEN) :]
            self._phase = "reasoning"
        elif not _OPEN.startswith(body):
            self._phase = "reasoning" if self._inside else "text"
            self._fresh = self._inside

    def _reasoning(self) -> str:
        """Take the reasoning that is decided, and go on to the text if the block is closed."""
        if self._fresh:
            self._held = self._held.lstrip("\n")
        before, close, after = self._held.partition(_CLOSE)
        if close:
            self._held, self._phase, self._fresh = after, "text", True
            return before.rstrip("\n")
        tag = max(n for n in range(len(_CLOSE)) if before.endswith(_CLOSE[:n]))
        decided = before[: len(before) - tag].rstrip("\n")
        self._held = before[len(decided) :]
        self._fresh = self._fresh and not decided
        return decided

    def _text(self) -> str:
        """Take all that is held as text."""
        text, self._held = self._held.lstrip("\n") if self._fresh else self._held, ""
        self._fresh = self._fresh and not text
        return text
