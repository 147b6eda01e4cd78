"""A generation that is going on, as an iterator of text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType

from hivellm_ort.decoding.loop import Step
from hivellm_ort.errors import InferenceError
from hivellm_ort.result import FinishReason, InferenceResult, Timings

__all__ = ["Clock", "TextStream"]


@dataclass
class Clock:
    """Seconds as they are counted; see `Timings`."""

    swap: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class TextStream(Iterator[str]):
    """Pieces of the answer as they become certain; `result` once it has ended.

    A piece never ends inside a UTF-8 character nor inside a stop string. Leaving the iteration early is fine:
    `close()`, the end of a `with` block or garbage collection free the row, and `result` then holds what was
    generated, with the finish reason `cancelled`.
    """

    def __init__(self, steps: Generator[Step], *, clock: Clock, prompt_tokens: int, expert: str):
        self._steps = steps
        self._clock = clock
        self._prompt_tokens = prompt_tokens
        self._expert = expert
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._finish_reason: FinishReason | None = None

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while self._finish_reason is None:
            begin = time.perf_counter()
            try:
                step = next(self._steps)
            except BaseException:
                self._finish_reason = "cancelled"
                raise
            seconds = time.perf_counter() - begin
            if self._tokens:
                self._clock.decode += seconds
            else:
                self._clock.prefill = seconds
            self._tokens.append(step.token_id)
            self._texts.append(step.text)
            if step.finish_reason is not None:
                self._steps.close()  # frees the row now, not when the generator is collected
                self._finish_reason = step.finish_reason
            if step.text:
                return step.text
        raise StopIteration

    @property
    def result(self) -> InferenceResult:
        """The finished generation.

        Raises:
            InferenceError: it is still going on.
        """
        if self._finish_reason is None:
            raise InferenceError("the stream has not ended: iterate to its end, or close() it, before result")
        return InferenceResult(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._tokens),
            finish_reason=self._finish_reason,
            timings=Timings(self._clock.swap, self._clock.prefill, self._clock.decode),
            expert=self._expert,
        )

    def close(self) -> None:
        """End the generation here; does nothing once it has ended."""
        if self._finish_reason is None:
            self._finish_reason = "cancelled"
            self._steps.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
