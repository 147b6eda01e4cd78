"""Whatever a function of the application raises, only the request that called it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from managing import Recorder, at_rest, managed, until
from support.running import PROMPT, Packages, held, slowed

from hivellm_ort import ExpertManager, InferenceError, OptionError, OptionTypeError, TextStream
from hivellm_ort.observability import Event, RequestStarted
from hivellm_ort.serving.generation import Generation


class _OwnError(BaseException):
    """One that is no Exception."""


RAISED = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    StopIteration(1),
    StopAsyncIteration(),
    _OwnError(),
]
Spoil = Callable[[Generation, BaseException], None]
by_type = pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)


@pytest.fixture(autouse=True)
def _tracebacks_end_with_the_test() -> Iterator[None]:
    """Remove the tracebacks of the module's errors, because they would keep loaded experts in memory."""
    yield
    for error in RAISED:
        error.__traceback__ = error.__context__ = error.__cause__ = None


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """A manager with two experts of a base."""
    with managed(packages) as manager:
        for name in ("lora", "dora"):
            manager.load_expert(name, getattr(packages, name))
        yield manager
        at_rest(manager)  # a failure leaves no lease


def _raising(error: BaseException, *, after: int = 0) -> Callable[..., Any]:
    calls = iter(range(10**6))

    def function(*_: Any, **__: Any) -> Any:
        if next(calls) >= after:
            raise error

    return function


def _others(manager: ExpertManager) -> list[TextStream]:
    """Two requests that are being answered, and go on for a while."""
    streams = [
        manager.generate_stream(name, PROMPT, max_tokens=20, processors=[slowed]) for name in ("lora", "dora")
    ]
    until(lambda: held(manager, "lora").shared_base.scheduler.active == 2)
    return streams


def _all_answer(manager: ExpertManager, streams: list[TextStream]) -> None:
    """They end as they do alone, and so do later requests."""
    for name, stream in zip(("lora", "dora"), streams, strict=True):
        assert "".join(stream) == manager.generate(name, PROMPT, max_tokens=20).text


@by_type
def test_a_processor(manager: ExpertManager, error: BaseException) -> None:
    """Its request ends with a typed error that names it. The raised error is its cause."""
    others = _others(manager)
    stream = manager.generate_stream("lora", PROMPT, processors=[slowed, _raising(error, after=3)])
    with pytest.raises(InferenceError, match=rf"processors\[1\] raised {type(error).__name__}") as caught:
        list(stream)
    assert error is caught.value.__cause__
    _all_answer(manager, others)


@by_type
def test_a_processor_of_an_awaited_answer(manager: ExpertManager, error: BaseException) -> None:
    """No task counts as cancelled, and no loop as ended: the pieces end with the error."""

    async def pieces() -> list[str]:
        stream = manager.agenerate_stream("lora", PROMPT, processors=[_raising(error, after=3)])
        return [piece async for piece in stream]

    with pytest.raises(InferenceError, match="raised"):
        asyncio.run(pieces())


def _sampler(generation: Generation, error: BaseException) -> None:
    generation.sampler = _raising(error)


def _grammar(generation: Generation, error: BaseException) -> None:
    """Every call raises, also after the failure."""
    generation.constraint = _Broken(error)


class _Broken:
    """A constraint, whose methods and properties all raise."""

    def __init__(self, error: BaseException):
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


@pytest.mark.parametrize("error", RAISED[2:5], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("spoil", [_sampler, _grammar], ids=lambda spoil: spoil.__name__[1:])
def test_what_a_request_calls(manager: ExpertManager, spoil: Spoil, error: BaseException) -> None:
    """Where its sampler or its grammar raises, it ends alone."""
    others = _others(manager)
    generation = held(manager, "lora").builder.build(PROMPT, {"max_tokens": 20, "prompt_lookup": False})
    spoil(generation, error)
    held(manager, "lora").shared_base.scheduler.submit(generation)
    assert generation.wait(20)
    failure = generation.error
    assert isinstance(
        failure, InferenceError | RuntimeError
    )  # StopIteration inside a generator is a RuntimeError
    assert error is failure.__cause__
    _all_answer(manager, others)


@by_type
def test_listeners(manager: ExpertManager, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """Errors of event listeners and stream listeners are logged. All requests and other listeners go on."""
    after, told = Recorder(), threading.Event()

    def hook(event: Event) -> None:
        if threading.current_thread() is not threading.main_thread():
            told.set()
            raise error

    manager.events.add(hook)
    manager.events.add(after)
    with caplog.at_level(logging.ERROR, logger="hivellm_ort"):
        others = _others(manager)
        stream = manager.generate_stream("lora", PROMPT, max_tokens=5, processors=[slowed])
        stream.listen(_raising(error))
        assert "".join(stream) == manager.generate("lora", PROMPT, max_tokens=5).text
        _all_answer(manager, others)
    assert told.is_set()
    assert after.counts["RequestStarted"] == after.counts["RequestFinished"] == 6
    assert {"event hook", "listener of an answer"} == {
        words for words in ("event hook", "listener of an answer") if words in caplog.text
    }


def test_what_follows_a_scheduler(manager: ExpertManager) -> None:
    """An error after a step, or when the base becomes idle, ends neither the requests nor the thread."""
    scheduler = held(manager, "lora").shared_base.scheduler
    stop = scheduler.follow(_raising(SystemExit(3)), _raising(GeneratorExit()))
    _all_answer(manager, _others(manager))
    until(lambda: scheduler._idle)
    assert 3 == len(manager.generate("lora", PROMPT, max_tokens=3).tokens)
    stop()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_a_listener(manager: ExpertManager, kind: type[BaseException]) -> None:
    """In the main thread it ends the call. Nothing stays behind that would keep the manager open."""
    error = kind()

    def hook(event: Event) -> None:
        if threading.current_thread() is threading.main_thread():
            raise error

    manager.events.add(hook)
    for _ in range(3):
        with pytest.raises(kind):
            manager.generate("lora", PROMPT, max_tokens=3)
    manager.events.remove(hook)
    at_rest(manager)
    assert 3 == len(manager.generate("lora", PROMPT, max_tokens=3).tokens)


@by_type
def test_a_scorer(packages: Packages, error: BaseException) -> None:
    """Its error is raised by the call that asked for a route, and the manager goes on."""
    broken = True

    def scorer(prompt: str, candidate: Any, tags: Any, /) -> tuple[float, tuple[str, ...]]:
        if broken:
            raise error
        return 1.0, ()

    with managed(packages, scorer=scorer) as manager:
        manager.load_expert("lora", packages.lora)
        stream = manager.generate_stream("lora", PROMPT, max_tokens=20, processors=[slowed])
        with pytest.raises((type(error), RuntimeError)):
            manager.choose("count all of them")
        broken = False
        assert "lora" == manager.choose("count all of them")
        assert 20 == len(list(stream) and stream.result.tokens)


def test_a_processor_of_a_batch(manager: ExpertManager) -> None:
    """The batch raises its error, and requests beside it go on."""
    others = _others(manager)
    with pytest.raises(InferenceError, match="SystemExit"):
        manager.generate_batch(
            [("lora", PROMPT)] * 3, max_tokens=5, processors=[None, [_raising(SystemExit(3))], None]
        )
    _all_answer(manager, others)


def test_in_place_of_logits(manager: ExpertManager) -> None:
    """A processor that is no function of arrays fails alone too."""
    others = _others(manager)
    for returned in ("text", np.zeros(3, np.float32), np.float32(1)):
        with pytest.raises(TypeError, match="return the logits"):
            manager.generate("lora", PROMPT, max_tokens=5, processors=[lambda *_, value=returned: value])
    _all_answer(manager, others)


def test_events_tell_of_the_failure(manager: ExpertManager) -> None:
    """Metrics and hooks learn that the request ended with an error, like any other."""
    recorder = Recorder()
    manager.events.add(recorder)
    with pytest.raises(InferenceError):
        manager.generate("lora", PROMPT, max_tokens=5, processors=[_raising(SystemExit(3))])
    at_rest(manager)
    assert ["InferenceError"] == [event.error for event in recorder.events if hasattr(event, "error")]
    assert 1 == sum(isinstance(event, RequestStarted) for event in recorder.events)


class _SilentError(Exception):
    """One that says nothing, and ends the thread that asks."""

    def __str__(self) -> str:
        raise SystemExit(9)

    __repr__ = __str__


class _Hostile(np.ndarray):
    """An array that raises in every computation."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise SystemExit(6)


def _filled(value: float) -> Callable[..., None]:
    return lambda _, logits: logits.fill(value)


def _resized(_: Any, logits: np.ndarray) -> None:
    logits.resize(3, refcheck=False)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (_raising(_SilentError()), _SilentError),
        (_raising(BaseExceptionGroup("several", [SystemExit(1), KeyboardInterrupt()])), InferenceError),
        (_raising(MemoryError()), MemoryError),
        (_raising("no exception"), TypeError),  # type: ignore[arg-type]
        (_filled(np.nan), OptionError),
        (_filled(np.inf), OptionError),
        (_filled(-np.inf), InferenceError),
        (_resized, OptionTypeError),
        (lambda _, logits: logits.view(_Hostile), InferenceError),
        (lambda _, logits: np.ma.masked_all_like(logits), OptionError),
        (lambda _, logits: (one for one in logits), OptionTypeError),
        (type("_NotMade", (), {"__init__": _raising(SystemExit(2))}), InferenceError),
    ],
)  # fmt: skip
def test_odd_processors(manager: ExpertManager, processor: Any, expected: type[Exception]) -> None:
    """A processor with an error without text, or with a damaged array, ends only its own request."""
    others = _others(manager)
    with pytest.raises(expected):
        manager.generate("lora", PROMPT, max_tokens=5, temperature=0.7, processors=[processor])
    _all_answer(manager, others)


def test_a_processor_that_sets_numpy(manager: ExpertManager) -> None:
    """A processor's setting of NumPy's overflow handling does not affect other requests."""
    seen: list[Any] = []

    def strict(*_: Any) -> None:
        seen.append(np.geterr())
        np.seterr(all="raise")

    for name in ("lora", "dora"):
        manager.generate(name, PROMPT, max_tokens=2, processors=[strict, strict])
    assert [np.geterr()] * 8 == seen


@pytest.mark.parametrize("how", ["generate", "stream", "batch", "awaited", "awaited stream"])
def test_a_processor_that_waits_for_an_answer(manager: ExpertManager, how: str) -> None:
    """It would wait for itself: every way to ask raises at once."""

    async def awaited() -> None:
        async for _ in manager.agenerate_stream("dora", PROMPT, max_tokens=1):
            pass

    ways: dict[str, Callable[[], object]] = {
        "generate": lambda: manager.generate("dora", PROMPT, max_tokens=1),
        "stream": lambda: list(manager.generate_stream("lora", PROMPT, max_tokens=1)),
        "batch": lambda: manager.generate_batch([("lora", PROMPT)] * 2, max_tokens=1),
        "awaited": lambda: asyncio.run(manager.agenerate("lora", PROMPT, max_tokens=1)),
        "awaited stream": lambda: asyncio.run(awaited()),
    }
    others = _others(manager)
    stream = manager.generate_stream(
        "lora", PROMPT, max_tokens=5, processors=[lambda *_: ways[how]() and None]
    )
    with pytest.raises(InferenceError, match="a processor, event hook or listener must not wait"):
        list(stream)
    _all_answer(manager, others)


@pytest.mark.parametrize("error", RAISED[:2], ids=lambda error: type(error).__name__)
def test_whoever_reads(manager: ExpertManager, error: BaseException) -> None:
    """An error in the reader of a stream, also in a task, ends only its own request."""
    others = _others(manager)
    stream = manager.generate_stream("lora", PROMPT, max_tokens=50, processors=[slowed])

    def read_on() -> None:
        with stream:
            for _ in stream:
                raise error

    with pytest.raises(type(error)):
        read_on()
    assert "cancelled" == stream.result.finish_reason

    async def read() -> None:
        async for _ in manager.agenerate_stream("lora", PROMPT, max_tokens=50, processors=[slowed]):
            raise error

    with pytest.raises(type(error)):
        asyncio.run(read())
    _all_answer(manager, others)
