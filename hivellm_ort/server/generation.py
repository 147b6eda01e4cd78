"""Runs the answers of a request: queue, time limit, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from hivellm_ort.errors import arguments_named_by
from hivellm_ort.options import GenerateOptions
from hivellm_ort.result import InferenceResult
from hivellm_ort.server.errors import ApiError
from hivellm_ort.server.state import ServerState, shutting_down
from hivellm_ort.serving.generation import Step
from hivellm_ort.serving.stream import AsyncTextStream
from hivellm_ort.tools.parser import ToolCallParser

__all__ = ["RunningAnswers", "cancel_on_disconnect", "timeout_error"]

_T = TypeVar("_T")
_NO_FIELDS: Mapping[str, str] = MappingProxyType({})
# Fields of the API for options of the library with another name.
_FIELDS = {
    "enable_thinking": "chat_template_kwargs.enable_thinking",
    "include_stop": "include_stop_str_in_output",
    "prompt_ids": "prompt",
}


class RunningAnswers:
    """The answers of one request, generated concurrently.

    They are generated even if nobody reads them. Each releases its place in the queue when it ends.

    Args:
        state: The state of the application.
        streams: One stream for each answer. None of them has started.
    """

    def __init__(self, state: ServerState, streams: Sequence[AsyncTextStream]) -> None:
        self._state = state
        self._streams = streams
        self._events: asyncio.Queue[tuple[int, Step | InferenceResult | Exception] | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        state: ServerState,
        name: str,
        options: Sequence[GenerateOptions],
        *,
        steps: bool = False,
        fields: Mapping[str, str] = _NO_FIELDS,
    ) -> RunningAnswers:
        """Start all answers. Errors of the request are raised here.

        Args:
            state: The state of the application.
            name: The expert.
            options: The options of each answer.
            steps: Whether `events` yields every step.
            fields: Further names of options in this route, by the name of the option.

        Raises:
            ApiError: The queue is full, or the server is shutting down.
            ExpertError: The request cannot be answered.
        """
        state.reserve(len(options))
        timeout = state.options.limits.request_timeout
        limited: list[GenerateOptions] = [{**one, "timeout": timeout} for one in options]
        streams = [state.manager.agenerate_stream(name, **options) for options in limited]
        answers = cls(state, streams)
        started: list[asyncio.Future[None]] = []
        with arguments_named_by(partial(_as_field, {**_FIELDS, **fields})):  # the tasks inherit it
            for index, stream in enumerate(streams):
                started.append(asyncio.get_running_loop().create_future())
                task = asyncio.create_task(answers._run(index, stream, started[-1], steps=steps))
                task.add_done_callback(lambda _: state.release())  # also after an error
                answers._tasks.append(task)
        state.register(answers)
        try:
            ended = await asyncio.gather(*started, return_exceptions=True)
        except asyncio.CancelledError:
            answers.abandon()
            raise
        for error in ended:
            if error is not None:
                answers.abandon()
                raise error
        return answers

    def __enter__(self) -> RunningAnswers:
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    async def results(self) -> list[InferenceResult]:
        """Wait for all answers and return them.

        Raises:
            ApiError: The time limit is reached, or the server is shutting down.
            ExpertError: An answer failed.
        """
        found: dict[int, InferenceResult] = {}
        async for event in self.events():
            if event is not None and isinstance(event[1], InferenceResult):
                found[event[0]] = event[1]
        return [found[index] for index in range(len(self._streams))]

    async def events(
        self, idle: float | None = None
    ) -> AsyncIterator[tuple[int, Step | InferenceResult] | None]:
        """Yield (index of the answer, step or result) as they come. Raises as `results`.

        Args:
            idle: Seconds without an event after which None is yielded; None for never.
        """
        left = len(self._streams)
        loop = asyncio.get_running_loop()
        last = loop.time()
        timer: asyncio.TimerHandle | None = None

        def check_idle(seconds: float) -> None:
            """Queue None after an idle time. One timer serves all steps: a timer per step would cost too much."""
            nonlocal timer, last
            if loop.time() >= last + seconds:
                last = loop.time()
                self._events.put_nowait(None)
            timer = loop.call_at(last + seconds, check_idle, seconds)

        try:
            if idle is not None:
                timer = loop.call_later(idle, check_idle, idle)
            while left:
                event = await self._events.get()
                last = loop.time()
                if event is None:
                    yield None
                    continue
                index, what = event
                if isinstance(what, Exception):
                    raise what
                left -= isinstance(what, InferenceResult)
                yield index, what
        finally:
            if timer is not None:
                timer.cancel()
            self.abandon()

    def sampling(self, index: int) -> Mapping[str, Any]:
        """Return the sampling options of an answer."""
        return self._streams[index].sampling

    def call_parser(self, index: int) -> ToolCallParser:
        """Return a parser for the tool calls in an answer."""
        return self._streams[index].call_parser()

    def cancel(self) -> None:
        """Cancel all answers. Readers get the error."""
        for stream in self._streams:
            stream.cancel()

    def abandon(self) -> None:
        """Cancel all running answers, because nobody reads them any more."""
        for task in self._tasks:
            task.cancel()
        self._state.unregister(self)

    async def _run(
        self, index: int, stream: AsyncTextStream, started: asyncio.Future[None], *, steps: bool
    ) -> None:
        event: Step | InferenceResult | Exception
        try:
            await stream.start()
            started.set_result(None)
            if self._state.stopped:
                stream.cancel()
            while (step := await stream.next_step()) is not None:
                if steps:
                    self._events.put_nowait((index, step))
            event = self._complete(stream.result)
        except Exception as error:
            event = error
            if not started.done():
                started.set_exception(error)
        except asyncio.CancelledError:
            stream.cancel()
            started.cancel()
            raise
        self._events.put_nowait((index, event))

    def _complete(self, result: InferenceResult) -> InferenceResult:
        if result.finish_reason != "cancelled":
            return result
        if self._state.stopped:
            raise shutting_down()
        raise timeout_error(self._state.options.limits.request_timeout)


def timeout_error(seconds: float) -> ApiError:
    """Return the error for an answer that did not end in time."""
    # OpenAI's clients would retry twice, and wait as long each time.
    return ApiError(
        504,
        f"the answer did not end in {seconds:g} s: ask for fewer tokens, or retry when the server is less busy",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of the work. The work is cancelled when the client disconnects.

    Args:
        request: The request. Its body must have been read.
        work: The work.

    Raises:
        ClientDisconnect: The client disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
    except BaseException:
        _give_up(task)
        raise
    finally:
        disconnect.cancel()
    if not task.done():
        _give_up(task)
        raise ClientDisconnect
    return task.result()


def _give_up(task: asyncio.Future[Any]) -> None:
    """Cancel the work, and the answers that it may still start."""
    task.add_done_callback(_abandon)
    task.cancel()


def _abandon(task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and task.exception() is None and isinstance(task.result(), RunningAnswers):
        task.result().abandon()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_field(names: Mapping[str, str], name: str, value: str | int | None) -> str | None:
    """Return an argument of the library as the client wrote it; None if the name is the same."""
    field = names.get(name)
    return field if field is None or value is None else f"{field}={json.dumps(value)}"
