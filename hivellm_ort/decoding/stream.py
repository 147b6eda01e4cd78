"""A generation that is going on, as an iterator of text, and what is collected of it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any

from hivellm_ort.decoding.logprobs import TokenLogprob
from hivellm_ort.decoding.loop import Request, Step
from hivellm_ort.errors import InferenceError
from hivellm_ort.result import FinishReason, InferenceResult, Timings

__all__ = ["AsyncTextStream", "TextStream", "Transcript"]


class Transcript:
    """The steps of one request, put together.

    Args:
        request: the request.
        sampling: how its tokens are chosen, option by option.
        expert: name of the expert.
    """

    def __init__(self, request: Request, *, sampling: Mapping[str, Any], expert: str):
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._sampling = sampling
        self._expert = expert
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prefill = self._decode = 0.0

    def add(self, step: Step, seconds: float) -> None:
        """Add a step and the time it took."""
        if self._tokens:
            self._decode += seconds
        else:
            self._prefill += seconds
        if step.token_id is not None:
            self._tokens.append(step.token_id)
        if step.logprob is not None:
            self._logprobs.append(step.logprob)
        self._texts.append(step.text)
        self._reasoning.append(step.reasoning)
        self.finish_reason = step.finish_reason

    def result(self) -> InferenceResult:
        """What there is; cancelled where it has not ended."""
        request, lookup = self._request, self._request.lookup
        return InferenceResult(
            text="".join(self._texts),
            reasoning="".join(self._reasoning).strip(),
            tokens=tuple(self._tokens),
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=request.cached_tokens,
            completion_tokens=len(self._tokens),
            accepted_tokens=lookup.accepted if lookup is not None else 0,
            finish_reason=self.finish_reason or "cancelled",
            logprobs=tuple(self._logprobs) if request.logprobs is not None else None,
            sampling=self._sampling,
            timings=Timings(request.swap_seconds, self._prefill, self._decode),
            expert=self._expert,
        )


class TextStream(Iterator[str]):
    """Pieces of the answer as they become certain; `result` once it has ended.

    A piece never ends inside a UTF-8 character nor inside a stop string. Leaving the iteration early is fine:
    `close()`, the end of a `with` block or garbage collection free the row, and `result` then holds what was
    generated, with the finish reason `cancelled`. `cancel()` may be called from any thread.
    """

    def __init__(
        self, steps: Generator[tuple[int, Step]], transcript: Transcript, cancelled: threading.Event
    ):
        self._steps = steps
        self._transcript = transcript
        self._cancelled = cancelled
        self._running = threading.Lock()
        self._ended = False

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        with self._running:
            while not self._ended:
                step = self._advance()
                if step.text:
                    return step.text
        raise StopIteration

    @property
    def result(self) -> InferenceResult:
        """The finished generation.

        Raises:
            InferenceError: it is still going on.
        """
        if not self._ended:
            raise InferenceError("the stream has not ended: iterate to its end, or close() it, before result")
        return self._transcript.result()

    def cancel(self) -> None:
        """End the generation after the step that is running; iterating then ends."""
        self._cancelled.set()

    def close(self) -> None:
        """End the generation here, and wait until its row is free; does nothing once it has ended."""
        self.cancel()
        with self._running:
            self._end()

    def _advance(self) -> Step:
        begin = time.perf_counter()
        try:
            _, step = next(self._steps)
        except BaseException:
            self._end()
            raise
        self._transcript.add(step, time.perf_counter() - begin)
        if step.finish_reason is not None:
            # To the end: the row is then kept for requests that begin alike, and given back.
            next(self._steps, None)
            self._end()
        return step

    def _end(self) -> None:
        self._ended = True
        self._steps.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str]):
    """A `TextStream` for `async for`: every step runs in a thread, so the event loop goes on meanwhile.

    Cancelling the task that waits for a piece cancels the generation.
    """

    def __init__(self, stream: TextStream):
        self._stream = stream

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        import asyncio  # slow to import, and there already where it is needed

        try:
            piece = await asyncio.to_thread(next, self._stream, None)
        except asyncio.CancelledError:
            self._stream.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def result(self) -> InferenceResult:
        """See `TextStream.result`."""
        return self._stream.result

    def cancel(self) -> None:
        """See `TextStream.cancel`."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """See `TextStream.close`."""
        import asyncio

        await asyncio.to_thread(self._stream.close)

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
