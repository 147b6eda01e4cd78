"""Who is answered when: order, fairness, failures that stay alone, rows that grow and are given back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness.clients import PROMPTS
from managing import Gate, Recorder, at_rest, managed, together, until
from support.running import PROMPT, Packages, held, slowed

from hivellm_ort import ExpertManager, InferenceError, OutOfMemoryError, TextStream
from hivellm_ort.engine import decoder as decoder_module
from hivellm_ort.engine.forward_pass import ForwardPass
from hivellm_ort.serving.generation import Generation

LONG: dict[str, Any] = {"max_tokens": 400, "prompt_lookup": False}


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """A manager with three experts of a base, and one of another."""
    with managed(packages) as manager:
        for name in ("lora", "dora", "ia3", "short"):
            manager.load_expert(name, getattr(packages, name))
        yield manager


def _scheduler(manager: ExpertManager) -> Any:
    return held(manager, "lora").shared_base.scheduler


def _slow_ones(manager: ExpertManager, count: int) -> list[TextStream]:
    """Streams that take seconds, and have all begun."""
    streams = [manager.generate_stream("lora", PROMPT, processors=[slowed], **LONG) for _ in range(count)]
    until(lambda: _scheduler(manager).active == min(count, 8))
    return streams


def test_first_come_first_served(manager: ExpertManager) -> None:
    """Requests begin in the order in which they were asked, whichever expert they are for."""
    gate, order = Gate(), []
    first = manager.generate_stream("lora", PROMPT, max_tokens=2, processors=[gate])
    assert gate.reached.wait(20)

    def noting(number: int) -> Any:
        def note(_: Any, logits: np.ndarray) -> np.ndarray:
            order.append(number)
            return logits

        return note

    names = ["lora", "dora", "ia3"]
    streams = [
        manager.generate_stream(names[number % 3], PROMPT, max_tokens=1, processors=[noting(number)])
        for number in range(20)
    ]
    gate.open.set()
    for stream in [first, *streams]:
        list(stream)
    assert list(range(20)) == order


def test_a_long_answer_starves_nobody(manager: ExpertManager) -> None:
    """While it runs, other requests begin and end, one after another and several at once."""
    (long,) = _slow_ones(manager, 1)
    expected = {name: manager.generate(name, PROMPT, max_tokens=5).tokens for name in ("dora", "ia3")}

    def ask(name: str) -> None:
        for _ in range(5):
            assert expected[name] == manager.generate(name, PROMPT, max_tokens=5).tokens

    together([lambda name=name: ask(name) for name in ("dora", "ia3") * 2])
    assert _scheduler(manager).active == 1
    long.close()
    assert "cancelled" == long.result.finish_reason


def test_more_than_there_are_rows_wait(manager: ExpertManager) -> None:
    """Eight are answered at once, the others wait; a cancelled one leaves the queue within a step, without a row."""
    recorder = Recorder()
    manager.events.add(recorder)
    streams = _slow_ones(manager, 12)
    assert (8, 4) == (_scheduler(manager).active, _scheduler(manager).queued)
    begin = time.perf_counter()
    streams[10].close()
    assert time.perf_counter() - begin < 1.5
    assert (8, 3) == (_scheduler(manager).active, _scheduler(manager).queued)
    result = streams[10].result
    assert ("cancelled", 0) == (result.finish_reason, result.completion_tokens)
    (ended,) = [event for event in recorder.events if type(event).__name__ == "RequestFinished"]
    assert (False, "cancelled") == (ended.started, ended.finish_reason)
    streams[0].close()
    until(lambda: recorder.counts["RequestStarted"] == 9)
    for stream in streams:
        stream.cancel()
    for stream in streams:
        stream.close()
    at_rest(manager)


class CancelsAtStart:
    """Cancels a generation when it gets its row."""

    def started(self, generation: Generation) -> None:
        """See `Subscriber`."""
        generation.cancel()

    def first_token(self, generation: Generation) -> None:
        """See `Subscriber`."""

    def ended(self, generation: Generation) -> None:
        """See `Subscriber`."""


def test_cancelled_as_its_turn_comes(manager: ExpertManager) -> None:
    """A request that is cancelled between queue and row leaves no trace: not in other rows, not in kept prefixes."""
    prompts = [begin + " is a question that is quite long" for begin in ("this", "that other one")]
    expected = [manager.generate("lora", prompt, max_tokens=30).tokens for prompt in prompts]
    scheduler = _scheduler(manager)
    at_rest(manager)
    scheduler._engine.prefixes.clear()
    for answered in (1, 2):  # first where the next row was never used, then where another request was in it
        stream = manager.generate_stream("lora", prompts[0], max_tokens=30, processors=[slowed])
        next(stream)
        if answered == 2:
            manager.generate("lora", prompts[0], max_tokens=20)
        for _ in range(2):
            generation = held(manager, "lora").builder.build(prompts[1], {"max_tokens": 30})
            generation.subscribe(CancelsAtStart())
            scheduler.submit(generation)
            assert generation.wait(10)
            result = generation.result()
            assert ("cancelled", 0) == (result.finish_reason, result.completion_tokens)
        list(stream)
        assert expected[0] == stream.result.tokens
    assert expected[1] == manager.generate("lora", prompts[1], max_tokens=30).tokens


def test_timeouts(manager: ExpertManager) -> None:
    """A waiting or running request ends in time, with its text so far."""
    streams = _slow_ones(manager, 8)
    begin = time.perf_counter()
    waited = manager.generate("dora", PROMPT, timeout=0.2, **LONG)
    assert 0.2 < time.perf_counter() - begin < 1.7
    assert ("cancelled", 0) == (waited.finish_reason, waited.completion_tokens)
    for stream in streams:
        stream.cancel()
    for stream in streams:
        stream.close()
    expected = manager.generate("dora", PROMPT, **LONG).tokens
    ran = manager.generate("dora", PROMPT, timeout=0.2, processors=[slowed], **LONG)
    assert "cancelled" == ran.finish_reason
    assert 1 < len(ran.tokens) < 200
    assert expected[: len(ran.tokens)] == ran.tokens


def test_bases_side_by_side(manager: ExpertManager) -> None:
    """Two bases are in the middle of a step at the same time."""
    meeting = threading.Barrier(2)

    def meet(_: Any, logits: np.ndarray) -> np.ndarray:
        meeting.wait(20)  # breaks, and the request fails, unless the other is there too
        return logits

    together(
        [
            lambda name=name: manager.generate(name, PROMPT, max_tokens=5, processors=[meet])
            for name in ("lora", "short")
        ]
    )


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, MemoryError])
def test_failing_processor(manager: ExpertManager, error: type[BaseException]) -> None:
    """Its request fails; for an `Exception` only this one. The base goes on."""
    expected = manager.generate("dora", PROMPT, max_tokens=30).tokens
    steps = []

    def fail(_: Any, logits: np.ndarray) -> np.ndarray:
        steps.append(1)
        if len(steps) == 3:
            raise error
        return logits

    others = [manager.generate_stream("dora", PROMPT, max_tokens=30, processors=[slowed]) for _ in range(2)]
    next(others[0])
    kind = error if issubclass(error, Exception) else InferenceError
    with pytest.raises(kind):
        manager.generate("lora", PROMPT, max_tokens=30, processors=[fail])
    if issubclass(error, Exception):
        for other in others:
            list(other)
            assert expected == other.result.tokens
    assert expected == manager.generate("dora", PROMPT, max_tokens=30).tokens
    at_rest(manager)
    assert [0] * 4 == [info.active for info in manager.list_loaded_experts()]


def test_failing_pass(manager: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a pass that fails get its error; those that come later, and those that wait, are answered."""
    expected = manager.generate("dora", PROMPT, max_tokens=10).tokens
    original, broken = ForwardPass.run, threading.Event()

    def run(self: Any, token_ids: Any, *others: Any, **options: Any) -> Any:
        if len(token_ids) == 8 and not broken.is_set():
            broken.set()
            raise InferenceError("broken")
        return original(self, token_ids, *others, **options)

    monkeypatch.setattr(ForwardPass, "run", run)
    streams = [manager.generate_stream("dora", PROMPT, max_tokens=10, processors=[slowed]) for _ in range(10)]
    ends: list[str] = []
    for stream in streams:
        try:
            list(stream)
            ends.append("answered" if stream.result.tokens == expected else "wrong")
        except InferenceError:
            ends.append("failed")
    assert ["failed"] * 8 + ["answered"] * 2 == ends
    assert expected == manager.generate("dora", PROMPT, max_tokens=10).tokens
    assert {"InferenceError": 8} == manager.metrics.snapshot()["request_errors_total"]


def test_no_memory_for_another_row(manager: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory is short for one request, only this request fails. Running rows go on."""
    expected = manager.generate("lora", PROMPT, max_tokens=60).tokens
    original = decoder_module.KVCache

    def scarce(*arguments: Any, rows: int, capacity: int) -> Any:
        if rows > 1:
            raise OutOfMemoryError("no more rows")
        return original(*arguments, rows=rows, capacity=capacity)

    monkeypatch.setattr(decoder_module, "KVCache", scarce)
    stream = manager.generate_stream("lora", PROMPT, max_tokens=60, processors=[slowed])
    next(stream)
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match="no more rows"):
            manager.generate("dora", PROMPT, max_tokens=5)
    list(stream)
    assert expected == stream.result.tokens
    assert expected == manager.generate("lora", PROMPT, max_tokens=60).tokens


def test_rows_grow_and_are_given_back(manager: ExpertManager) -> None:
    """One row, two, four and eight as they are needed; one remains when there is nothing to do."""
    manager.generate("lora", PROMPT, max_tokens=1)
    scheduler = _scheduler(manager)
    at_rest(manager)
    single = scheduler.nbytes
    assert single > 0
    streams = []
    for count, rows in enumerate([1, 2, 4, 4, 8, 8, 8, 8], 1):
        streams += [manager.generate_stream("lora", PROMPT, processors=[slowed], **LONG)]
        until(lambda count=count: scheduler.active == count and len(scheduler._decoder._lengths) == count)
        until(lambda rows=rows: scheduler._decoder.rows == rows)
    (base,) = [base for base in manager.stats()["bases"] if base["key_value_bytes"] > single]
    assert 8 == base["active"]
    for stream in streams:
        stream.cancel()
    for stream in streams:
        stream.close()
    at_rest(manager)
    assert scheduler.nbytes <= single
    assert 0 == len(scheduler._decoder._lengths)


def test_larger_batches(manager: ExpertManager) -> None:
    """`batch_size` may exceed the eight rows there are at first; the answers are the same."""
    requests = [(name, prompt) for name in ("lora", "dora", "ia3") for prompt in PROMPTS][:18]
    expected = [manager.generate(*request, max_tokens=20).tokens for request in requests]
    most: list[int] = []
    manager.events.add(lambda event: most.append(getattr(event, "rows", 0)))
    results = manager.generate_batch(requests, max_tokens=20, batch_size=12, processors=[[slowed]] * 18)
    assert expected == [result.tokens for result in results]
    assert 12 == max(most)


def test_listener_that_raises(manager: ExpertManager, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and no answer changes."""
    expected = manager.generate("lora", PROMPT, max_tokens=10).text
    gate = Gate()
    one = manager.generate_stream("lora", PROMPT, max_tokens=10, processors=[gate])
    two = manager.generate_stream("lora", PROMPT, max_tokens=10)
    one.listen(lambda: 1 // 0)
    gate.open.set()
    assert [expected, expected] == ["".join(one), "".join(two)]
    assert "ZeroDivisionError" in caplog.text


_LEFT = """
    import sys, threading
    from hivellm_ort import ExpertManager
    manager = ExpertManager(cache_dir=sys.argv[1], threads=1, trust="off", max_loaded_experts=1)
    manager.events.add(lambda event: None)
    for path in sys.argv[2:]:
        manager.load_expert(path, path)
    streams = [manager.generate_stream(path, "x", max_tokens=100, min_tokens=100) for path in sys.argv[2:] * 10]
    print(next(streams[0]) is not None)
"""


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("", ""),
        ("import atexit; atexit.register(lambda: manager.close())", ""),  # after the library's own end
        ("", "import atexit; atexit.register(manager.close)"),
        ("", "raise SystemExit(0)"),
        ("", "del manager"),
    ],
)
def test_the_interpreter_ends(packages: Packages, begin: str, end: str) -> None:
    """A main thread that ends in the middle of streams ends the process: soon, and without a word."""
    script = f"{begin}\n{textwrap.dedent(_LEFT)}\n{end}\n"
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", script]
    paths = [packages.cache, packages.short, packages.lora]
    done = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "True\n", "") == (done.returncode, done.stdout, done.stderr)


def test_ending_takes_no_time(packages: Packages) -> None:
    """The process is gone within five seconds of the end of its main thread."""
    script = textwrap.dedent(_LEFT) + "\nprint(flush=True)\n"
    command = [sys.executable, "-c", script, *map(str, (packages.cache, packages.lora))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "True" == process.stdout.readline().strip()
        begin = time.perf_counter()
        assert 0 == process.wait(30)
        assert time.perf_counter() - begin < 5
