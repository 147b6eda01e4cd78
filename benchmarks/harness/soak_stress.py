"""Threads that ask for everything at once, and a process that cleans the store beside them."""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from harness.clients import COUNTS, NAMES, Client, RaisingListener
from harness.levels import growth, level
from harness.soaking import Report, Run, comes_to_rest

__all__ = ["stress"]

_NEW_OBJECTS = 500  # of one type: what was imported or made for the first time


def stress(report: Report, options: argparse.Namespace, run: Run) -> None:
    """Threads that ask for everything at once."""
    before = level()
    report.track.part("stress")
    manager = run.manager(max_loaded_experts=2)
    listener = manager.events.add(RaisingListener(manager, options.seed))
    for name in NAMES:
        manager.load_expert(name, run.paths[name][0])
    seeds = (1000 * options.seed + number for number in range(options.threads))
    clients = [Client(manager, run.answers, run.paths, seed, run.loading) for seed in seeds]
    end = time.monotonic() + 60 * options.minutes
    going = lambda: itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())  # noqa: E731
    threads = [threading.Thread(target=client.run, args=(going(),), daemon=True) for client in clients]
    with _cleaning(report, run.loading["cache_dir"], options) as cleaned:
        for thread in threads:
            thread.start()
        warm = _follow(report, clients, threads, 60 * options.minutes, options.hang)
    _tell(report, clients, listener, cleaned)
    if warm is None:  # threads hang: what follows would wait for them
        return
    if not comes_to_rest(manager):
        report.faults.append("stress: the manager does not come to rest")
        return
    report.stress["evicted"] = manager.stats()["evictions"]
    resting = level()
    manager.close()
    del manager, listener, clients, threads, going
    after = level()
    report.stress |= {
        "rss warm": warm,
        "rss end": resting.rss,
        "percent": round(100 * (resting.rss / warm - 1), 2),
        "rss closed": after.rss,
        "trimmed closed": after.trimmed,
        "objects": [sum(before.objects.values()), sum(after.objects.values())],
        "files": [before.files, after.files],
        "threads": [before.threads, after.threads],
        "sessions": [before.sessions, after.sessions],
    }
    # What so many threads make the C library keep is no leak: their objects, files and sessions are.
    report.faults += [f"stress: {line}" for line in growth(before, after, 10 * _NEW_OBJECTS, None)]


def _follow(
    report: Report,
    clients: Sequence[Client],
    threads: Sequence[threading.Thread],
    seconds: float,
    hang: float,
) -> int | None:
    """Show how far it is until all threads have ended; resident memory after a fifth, or None where one hangs."""
    begin = time.monotonic()
    warm: int | None = None
    with tqdm(total=round(seconds), desc="stress", unit="s", disable=None) as bar:
        while any(thread.is_alive() for thread in threads):
            # Where even this thread cannot go on, the stacks are written and the process ends.
            faulthandler.dump_traceback_later(2 * hang, exit=True)
            time.sleep(1)
            report.track.sample()
            now = time.monotonic()
            if warm is None and now - begin > seconds / 5:
                warm = report.track.points[-1][1]
            bar.update(min(round(now - begin), bar.total) - bar.n)
            bar.set_postfix(_sum(clients), refresh=False)
            slow = [now - since for client in clients if (since := client.since) is not None]
            if max(slow, default=0) > hang:
                faulthandler.cancel_dump_traceback_later()
                faulthandler.dump_traceback(all_threads=True)
                hanging = sum(one > hang for one in slow)
                report.faults.append(f"stress: {hanging} threads hang, for {max(slow):.0f} s")
                return None
    faulthandler.cancel_dump_traceback_later()
    return warm if warm is not None else report.track.points[-1][1]


def _sum(clients: Sequence[Client]) -> Counter[str]:
    return sum((Counter(client.counts) for client in clients), Counter())


def _tell(
    report: Report, clients: Sequence[Client], listener: RaisingListener, cleaned: Sequence[str]
) -> None:
    """Put what the clients have counted into the report."""
    counts = _sum(clients)
    wrong = [line for client in clients for line in client.wrong]
    failed: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for client in clients:
        for name, (times, first) in client.failures.items():
            failed[name] += times
            examples.setdefault(name, first)
    report.stress |= {
        **{name: counts[name] for name in COUNTS},
        "listener raised": listener.raised,
        "wrong answers": len(wrong),
        "failed": dict(failed),
        "longest request, s": round(max(client.longest for client in clients), 2),
        "store cleaned": len(cleaned),
    }
    report.faults += [f"stress: wrong answer: {line}" for line in wrong[:20]]
    report.faults += [f"stress: {times} times {name}\n{examples[name]}" for name, times in failed.items()]
    if not counts["finished"]:
        report.faults.append("stress: no answer has finished")


@contextmanager
def _cleaning(report: Report, store: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Have another process clear and prune the store meanwhile; what it says, a line each time."""
    lines: list[str] = []
    if options.no_cleaning:
        yield lines
        return
    script = Path(__file__).parent / "cleaner.py"
    command = [sys.executable, str(script), str(store), str(options.seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield lines
        finally:
            process.stdin.close()  # it ends by that, on every system
            status = process.wait(timeout=60)
            reader.join()
            if status:
                report.faults.append(f"stress: the process that cleans the store ended with status {status}")
