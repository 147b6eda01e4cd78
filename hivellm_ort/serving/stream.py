"""Iterators over the text of a running generation."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from queue import Empty
from types import TracebackType
from typing import Any

from hivellm_ort.errors import InferenceError
from hivellm_ort.result import InferenceResult, ScoreResult
from hivellm_ort.serving.generation import Generation, Step
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.tools.parser import ToolCallParser

__all__ = ["AsyncTextStream", "TextStream", "score_result"]


class TextStream(Iterator[str]):
    """An iterator over the pieces of an answer. Read `result` after the end.

    The answer is generated even if nobody iterates. A piece never ends inside a UTF-8 character or a stop string.
    You may stop early: `close()`, the end of a `with` block or garbage collection free the row, and `result` then
    holds the text so far, with the finish reason `cancelled`. `cancel()` may be called from any thread.
    """

    def __init__(self, generation: Generation):
        self._generation = generation

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while not (text := self._checked(self._generation.next_step()).text):
            pass
        return text

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The options of sampling that are used, as the result has them."""
        return self._generation.request.options

    @property
    def result(self) -> InferenceResult:
        """The result of the finished generation.

        Raises:
            InferenceError: The generation is still running, or has failed.
        """
        return self._generation.result()

    def call_parser(self) -> ToolCallParser:
        """Return a parser for the pieces of this stream: it separates calls of tools from text.

        >>> parser = stream.call_parser()  # doctest: +SKIP
        >>> for piece in stream:  # doctest: +SKIP
        ...     for event in parser.push(piece):
        ...         print(event)
        >>> parser.flush()  # doctest: +SKIP
        """
        return self._generation.call_parser()

    def poll(self) -> Step | None:
        """Return the next token with its text if it is available, else None.

        Raises:
            StopIteration: The answer has ended.
        """
        try:
            return self._checked(self._generation.steps.get_nowait())
        except Empty:
            return None

    def listen(self, listener: Callable[[], None]) -> None:
        """Call a function, from another thread, whenever there is something to `poll`."""
        self._generation.listen(listener)

    def cancel(self) -> None:
        """End the generation after the running step; a long step is interrupted. Iteration then ends."""
        self._generation.cancel()

    def close(self) -> None:
        """Cancel the generation and wait for its end. Does nothing after its end or in a forked process."""
        if self._generation.here:
            self.cancel()
            self._generation.wait()

    def _checked(self, step: Step | None) -> Step:
        if step is not None:
            return step
        self._generation.steps.put(None)  # for later calls
        if self._generation.error is not None:
            raise self._generation.error
        raise StopIteration

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._generation.here:
            self.cancel()


class AsyncTextStream(AsyncIterator[str]):
    """A `TextStream` for `async for`. Waiting does not block the event loop.

    The generation starts when the first piece is requested. Cancelling the waiting task cancels the generation.
    """

    def __init__(self, start: Callable[[], TextStream]):
        self._start = start
        self._stream: TextStream | None = None

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        while (step := await self.next_step()) is not None:
            if step.text:
                return step.text
        raise StopAsyncIteration

    async def start(self) -> None:
        """Begin the generation: what is wrong with the request is raised here. Does nothing once it has begun."""
        import asyncio  # slow to import, and there already where it is needed

        refuse_to_wait()
        if self._stream is not None:
            return
        # Templates, tokenizers and grammars take their time.
        self._stream = await asyncio.to_thread(self._start)
        self._updated = asyncio.Event()
        loop, updated = asyncio.get_running_loop(), self._updated

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(updated.set)

        self._stream.listen(wake)

    async def next_step(self) -> Step | None:
        """Return the next token, with its text, reasoning and probability; None after the last."""
        import asyncio

        await self.start()
        assert self._stream is not None  # noqa: S101
        try:
            while True:
                self._updated.clear()
                step = self._stream.poll()
                if step is not None:
                    return step
                await self._updated.wait()
        except StopIteration:
            return None
        except asyncio.CancelledError:
            self._stream.cancel()
            raise

    @property
    def result(self) -> InferenceResult:
        """See `TextStream.result`."""
        if self._stream is None:
            raise InferenceError("the answer has not begun: iterate to its end before result")
        return self._stream.result

    @property
    def sampling(self) -> Mapping[str, Any]:
        """See `TextStream.sampling`; there are some from the first piece on."""
        if self._stream is None:
            raise InferenceError("the answer has not begun: ask for its first piece before sampling")
        return self._stream.sampling

    def call_parser(self) -> ToolCallParser:
        """See `TextStream.call_parser`; there is one from the first piece on."""
        if self._stream is None:
            raise InferenceError("the answer has not begun: ask for its first piece before call_parser")
        return self._stream.call_parser()

    def cancel(self) -> None:
        """See `TextStream.cancel`."""
        if self._stream is not None:
            self._stream.cancel()

    async def aclose(self) -> None:
        """See `TextStream.close`."""
        import asyncio

        if self._stream is not None:
            refuse_to_wait()
            await asyncio.to_thread(self._stream.close)

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def score_result(start: Callable[[], TextStream], answers: Sequence[str]) -> ScoreResult:
    """Run a request that scores answers, without blocking the event loop. Cancelling the task ends the request.

    Args:
        start: Submits the request. A thread calls it.
        answers: The answers, as given.
    """
    stream = AsyncTextStream(start)
    await stream.start()
    assert stream._stream is not None  # noqa: S101
    async for _ in stream:
        pass
    return stream._stream._generation.score_result(answers)
