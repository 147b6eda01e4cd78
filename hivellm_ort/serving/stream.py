"""A generation that is going on, as an iterator of text."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty
from types import TracebackType

from hivellm_ort.errors import InferenceError
from hivellm_ort.result import InferenceResult
from hivellm_ort.serving.generation import Generation, Step
from hivellm_ort.serving.threads import refuse_to_wait
from hivellm_ort.tools.parser import ToolCallParser

__all__ = ["AsyncTextStream", "TextStream"]


class TextStream(Iterator[str]):
    """Pieces of the answer as they become certain; `result` once it has ended.

    The answer is generated whether or not it is read. A piece never ends inside a UTF-8 character nor inside a stop
    string. Leaving the iteration early is fine: `close()`, the end of a `with` block or garbage collection free the
    row, and `result` then holds what was generated, with the finish reason `cancelled`. `cancel()` may be called from
    any thread.
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
    def result(self) -> InferenceResult:
        """The finished generation.

        Raises:
            InferenceError: it is still going on, or has failed.
        """
        return self._generation.result()

    def call_parser(self) -> ToolCallParser:
        """A parser to give the pieces to: it tells the calls of tools from the text, as they come.

        >>> parser = stream.call_parser()  # doctest: +SKIP
        >>> for piece in stream:  # doctest: +SKIP
        ...     for event in parser.push(piece):
        ...         print(event)
        >>> parser.flush()  # doctest: +SKIP
        """
        return self._generation.call_parser()

    def poll(self) -> Step | None:
        """The next token, with the text that it made certain, if there is one already; else None.

        Raises:
            StopIteration: the answer has ended.
        """
        try:
            return self._checked(self._generation.steps.get_nowait())
        except Empty:
            return None

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called, from another thread, whenever there is something to `poll`."""
        self._generation.listen(listener)

    def cancel(self) -> None:
        """End the generation after the step that is running, interrupted if it lasts; iterating then ends."""
        self._generation.cancel()

    def close(self) -> None:
        """End the generation here, and wait until it has; does nothing once it has ended, or in a forked process."""
        if self._generation.here:
            self.cancel()
            self._generation.wait()

    def _checked(self, step: Step | None) -> Step:
        if step is not None:
            return step
        self._generation.steps.put(None)  # for whoever asks again
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
    """A `TextStream` for `async for`: the event loop goes on while it waits.

    The generation begins with the first piece that is asked for. Cancelling the task that waits for a piece cancels
    the generation.
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
        """The next token, with its text, reasoning and probability; None after the last."""
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
