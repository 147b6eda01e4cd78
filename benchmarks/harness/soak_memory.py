"""Generations, loads and abandoned streams, one after the other, and what the process holds after them."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
from collections.abc import Callable

from tqdm import tqdm

from harness.clients import KINDS, PROMPTS, TOKENS
from harness.levels import Level, growth, level
from harness.soaking import Report, Run, comes_to_rest
from hivellm_ort import Expert, ExpertManager

__all__ = ["stay_small"]

_LOOP = 10  # asynchronous streams in one event loop


def stay_small(report: Report, options: argparse.Namespace, run: Run) -> None:
    """Generations, loads and abandoned streams."""
    kinds = list(KINDS)
    with run.manager() as manager:
        names = [str(number) for number in range(len(run.packages))]
        manager.load_experts(dict(zip(names, run.packages, strict=True)))

        def generate(number: int) -> None:
            name, kind = names[number % len(names)], kinds[number // 7 % len(kinds)]
            prompt = PROMPTS[number // 5 % len(PROMPTS)]
            if number % 2:  # no prompt twice: nothing may be kept of each
                manager.generate(name, f"{prompt} {number}", max_tokens=TOKENS, **KINDS[kind])
                return
            result = manager.generate(name, prompt, max_tokens=TOKENS, **KINDS[kind])
            if result.tokens != run.answers[result.expert][prompt, kind].tokens:
                report.faults.append(f"generations: wrong answer number {number} of {result.expert}")

        def abandon(number: int) -> None:
            name = names[number // 7 % len(names)]
            if number % (2 * _LOOP) < _LOOP:
                next(manager.generate_stream(name, PROMPTS[0], max_tokens=TOKENS), None)
            elif number % _LOOP == 0:
                asyncio.run(_abandon_some(manager, name))

        if options.generations:
            _watch(report, "generations", options.generations, options, generate)
        if options.streams:
            _watch(report, "streams", options.streams, options, abandon)
            if not comes_to_rest(manager):
                report.faults.append("streams: the manager does not come to rest")

    def load(number: int) -> None:
        path = run.packages[number // 2 % len(run.packages)]
        if number % 2:
            with Expert.load(path, **run.loading) as expert:
                expert.generate(PROMPTS[0], max_tokens=2)
            return
        with run.manager() as manager:
            manager.load_expert("one", path)
            manager.generate("one", PROMPTS[0], max_tokens=2)
            manager.unload_expert("one")

    if options.loads:
        _watch(report, "loads", options.loads, options, load)


def _watch(
    report: Report, name: str, count: int, options: argparse.Namespace, work: Callable[[int], None]
) -> None:
    """Do a work so many times, and compare what the process holds after a tenth and at the end."""
    report.track.part(name)
    first: Level | None = None
    warm = max(count // 10, 1)
    for number in tqdm(range(count), desc=name, disable=None, mininterval=2):
        if number == warm:
            first = level()
        # What hangs here ends the process, with the stacks of all threads.
        faulthandler.dump_traceback_later(options.hang, exit=True)
        work(number)
        if number % max(count // 100, 1) == 0:
            report.track.sample()
    faulthandler.cancel_dump_traceback_later()
    last = level()
    first = first or last
    report.memory[name] = {
        "count": count,
        "rss warm": first.rss,
        "rss end": last.rss,
        "percent": round(100 * (last.rss / first.rss - 1), 2),
        "trimmed warm": first.trimmed,
        "trimmed end": last.trimmed,
        "trimmed percent": round(100 * (last.trimmed / first.trimmed - 1), 2),
        "objects": [sum(first.objects.values()), sum(last.objects.values())],
        "files": [first.files, last.files],
        "threads": [first.threads, last.threads],
        "sessions": [first.sessions, last.sessions],
    }
    report.faults += [f"{name}: {line}" for line in growth(first, last, count - warm, options.percent)]


async def _abandon_some(manager: ExpertManager, name: str) -> None:
    for _ in range(_LOOP):
        async for _piece in manager.agenerate_stream(name, PROMPTS[0], max_tokens=TOKENS):
            break
