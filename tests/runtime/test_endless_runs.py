"""Runs of a session that never end by themselves: what is said to end a request ends it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.extras import requires_export

requires_export()

from golden.sources import BASES, save_base
from hostile_graphs import change_graphs, looping
from support.running import PROMPT, Packages, active, prompt_ids

from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExpertManager
from hivellm_ort.engine.watchdog import END_SECONDS

LATEST = END_SECONDS + 0.75  # seconds: what a busy machine needs to run a thread is in it
ENDLESS = "Zzz"  # a prompt with a token that a run goes round a loop for, and never comes back
PLAIN = [PROMPT, "count", "a"]
OPTIONS: dict[str, Any] = {"max_tokens": 12, "prompt_lookup": False}
LONG: dict[str, Any] = {"max_tokens": 1500, "min_tokens": 1500, "prompt_lookup": False}


@pytest.fixture(scope="module")
def bundle(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of `packages`, with graphs that loop for ever when they read a `Z`."""
    return made_endless(packages, tmp_path_factory.mktemp("endless") / "base")


def made_endless(packages: Packages, folder: Path, **options: Any) -> Path:
    """Export the base of `packages` with a longer context and with options, and change its graphs."""
    longer = dataclasses.replace(BASES["tiny"], context=2048)
    export(save_base(folder.with_name("longer"), longer), [], folder, precision="fp32", **options)
    with Expert.load(packages.lora_folder, base=folder, cache_dir=packages.cache, trust="off") as expert:
        (token,) = set(prompt_ids(expert, "Z")) - set(prompt_ids(expert, "")) - set(prompt_ids(expert, "z"))
    return change_graphs(folder, looping(token))


@pytest.fixture
def expert(packages: Packages, bundle: Path) -> Iterator[Expert]:
    """The LoRA expert on that base."""
    with Expert.load(
        packages.lora_folder, base=bundle, cache_dir=packages.cache, trust="off", threads=1
    ) as expert:
        yield expert


def token_of(expert: Expert) -> int:
    """The token that the graphs loop for."""
    (token,) = expert.tokenizer.encode("Z")
    return token


def elapsed(begin: float) -> float:
    """Seconds since then."""
    return time.perf_counter() - begin


def settle(expert: Expert, rows: int = 1) -> None:
    """Wait until a run that never ends has begun, as that of so many rows."""
    deadline = time.perf_counter() + 20
    while expert._base.scheduler.active < rows:
        assert time.perf_counter() < deadline
        time.sleep(0.01)
    time.sleep(0.1)


def test_timeout(expert: Expert) -> None:
    """A prompt whose run never ends ends in time, and the expert answers as before."""
    expected = expert.generate(PROMPT, **OPTIONS).tokens
    begin = time.perf_counter()
    result = expert.generate(ENDLESS, timeout=0.5, **OPTIONS)
    assert 0.5 <= elapsed(begin) < 0.5 + LATEST
    assert ("cancelled", 0) == (result.finish_reason, result.completion_tokens)
    assert expected == expert.generate(PROMPT, **OPTIONS).tokens
    assert 0 == active(expert)


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_stream(expert: Expert, end: str) -> None:
    """A stream that is cancelled, or closed, in a run that never ends ends in time."""
    stream = expert.generate_stream(ENDLESS, **OPTIONS)
    settle(expert)
    begin = time.perf_counter()
    getattr(stream, end)()
    assert [] == list(stream)
    assert elapsed(begin) < LATEST
    assert "cancelled" == stream.result.finish_reason


def test_the_first_tokens_stay(expert: Expert) -> None:
    """Where a later token never comes, the answer has those before it."""
    expected = expert.generate(PROMPT, **OPTIONS).tokens
    # The third token is the one that the graphs loop for, so the run that reads it never ends.
    third = _Forces(token_of(expert), at=3)
    begin = time.perf_counter()
    result = expert.generate(PROMPT, processors=[third], timeout=0.6, **OPTIONS)
    assert elapsed(begin) < 0.6 + LATEST
    assert "cancelled" == result.finish_reason
    assert (*expected[:2], token_of(expert)) == result.tokens


class _Forces:
    """A processor that has one token chosen as the answer's token number `at`, from 1."""

    def __init__(self, token: int, *, at: int):
        self._token, self._left = token, at

    def __call__(self, _: Any, logits: Any) -> Any:
        self._left -= 1
        if not self._left:
            logits = logits.copy()
            logits[self._token] = 1e4
        return logits


def test_rows_of_a_batch(expert: Expert) -> None:
    """A row that makes all of them wait ends in time, and the others answer as alone."""
    expected = [expert.generate(prompt, **OPTIONS).tokens for prompt in PLAIN]
    begin = time.perf_counter()
    processors = [None, [_Forces(token_of(expert), at=4)], None, None]
    results = expert.generate_batch(
        [PLAIN[0], "b", *PLAIN[1:]], processors=processors, timeout=[None, 0.5, None, None], **OPTIONS
    )
    assert elapsed(begin) < 0.5 + LATEST + 2
    assert "cancelled" == results[1].finish_reason
    assert 4 == results[1].completion_tokens
    assert expected == [result.tokens for result in (results[0], *results[2:])]


@pytest.mark.parametrize("options", [{"target": "portable", "context": 512}, {"cache": "int8"}], ids=str)
def test_rows_of_other_graphs(packages: Packages, tmp_path: Path, options: dict[str, Any]) -> None:
    """The same on graphs that take one row a run, and on those that round what they write into the cache."""
    bundle = made_endless(packages, tmp_path / "base", **options)
    with Expert.load(
        packages.lora_folder, base=bundle, cache_dir=packages.cache, trust="off", threads=1
    ) as expert:
        test_rows_of_a_batch(expert)


def test_two_rows_end_one_after_the_other(expert: Expert) -> None:
    """Rows with times of their own are ended each in its time, and what is left answers as alone."""
    expected = expert.generate(PROMPT, **OPTIONS).tokens
    processors = [[_Forces(token_of(expert), at=4)], [_Forces(token_of(expert), at=4)], None]
    results = expert.generate_batch(
        ["b", "c", PROMPT], processors=processors, timeout=[0.4, 0.9, None], **OPTIONS
    )
    assert ["cancelled", "cancelled", "length"] == [result.finish_reason for result in results]
    assert 0.4 + LATEST > results[0].timings.prefill + results[0].timings.decode
    assert 0.9 + LATEST > results[1].timings.prefill + results[1].timings.decode
    assert expected == results[2].tokens


def test_those_that_wait_for_it(expert: Expert) -> None:
    """Rows and waiting requests end in time while another prompt is read for ever, and that request goes on."""
    running = expert.generate_stream(PROMPT, **LONG)
    next(running)
    endless = expert.generate_stream(ENDLESS, **OPTIONS)
    settle(expert, rows=2)
    begin = time.perf_counter()
    waiting = expert.generate_stream(PROMPT, timeout=0.2, **OPTIONS)
    assert [] == list(waiting)
    assert elapsed(begin) < 0.2 + LATEST
    begin = time.perf_counter()
    running.close()
    assert elapsed(begin) < LATEST
    assert running.result.completion_tokens > 0
    assert endless.poll() is None
    assert 1 == active(expert)
    endless.close()
    assert 0 == active(expert)


def test_a_long_prompt_goes_on(expert: Expert) -> None:
    """A prompt that is read in several runs gives the same answer if another row ends meanwhile."""
    long = " ".join(f"{number}" for number in range(400))
    expected = expert.generate(long, **OPTIONS)
    assert expected.prompt_tokens > 1000
    expert._base.engine.prefixes.clear()
    watchdog = expert._base.scheduler._watchdog
    decoder = expert._base.scheduler._decoder
    assert decoder is not None
    running = expert.generate_stream(PROMPT, **LONG)
    next(running)
    runs, plain = [], watchdog.raise_if_cancelled

    def third() -> None:
        """Cancel the other row between two runs."""
        runs.append(1)
        if len(runs) == 3:
            running.cancel()
        plain()

    watchdog.raise_if_cancelled = third  # type: ignore[method-assign]
    result = expert.generate(long, **OPTIONS)
    assert "cancelled" == (list(running), running.result.finish_reason)[1]
    # One question between every two runs, as without the end of the other: nothing was read again.
    assert -(-expected.prompt_tokens // 256) - 1 == len(runs)
    assert expected.tokens == result.tokens


def test_close_of_an_expert_that_shares_its_base(packages: Packages, bundle: Path, expert: Expert) -> None:
    """An expert is closed in time while a run for another of its base never ends."""
    endless = expert.generate_stream(ENDLESS, **OPTIONS)
    settle(expert)
    other = Expert.load(packages.lora_folder, base=bundle, cache_dir=packages.cache, trust="off", threads=1)
    begin = time.perf_counter()
    other.close()
    assert elapsed(begin) < LATEST
    endless.close()


def test_close_of_a_manager(packages: Packages, bundle: Path) -> None:
    """A manager is closed in time, and waiting callers get an error."""
    manager = ExpertManager(cache_dir=packages.cache, trust="off", threads=1)
    manager.load_expert("one", packages.lora_folder, base=bundle)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(manager.generate("one", ENDLESS)))
    thread.start()
    time.sleep(0.5)
    begin = time.perf_counter()
    manager.close()
    assert elapsed(begin) < LATEST
    thread.join(5)
    assert ["cancelled"] == [result.finish_reason for result in results]


def test_the_process_ends(packages: Packages, bundle: Path) -> None:
    """A process ends in the middle of a run that never ends."""
    script = (
        "import sys, time\nfrom hivellm_ort import Expert\n"
        "expert = Expert.load(sys.argv[1], base=sys.argv[2], cache_dir=sys.argv[3], trust='off', threads=1)\n"
        "stream = expert.generate_stream(sys.argv[4])\ntime.sleep(0.3)\nprint(expert._base.scheduler.active)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, packages.lora_folder, bundle, packages.cache, ENDLESS],
        capture_output=True,
        text=True,
        timeout=8,
        check=True,
    )
    assert ("1\n", "") == (done.stdout, done.stderr)
