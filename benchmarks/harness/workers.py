"""A worker process per system, which sleeps while others measure."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

__all__ = ["Worker", "WorkerError"]

PEERS = Path(__file__).parents[1] / "peers"
_TIMEOUT = 900.0


class WorkerError(Exception):
    """A system could not do what was asked; the message says why, for the report."""


class Worker:
    """One peer with one model in memory.

    Between its turns it is stopped by the operating system: waiting threads spin in some runtimes, and must not take
    the cores from the one that is measured.

    Args:
        python: the interpreter of the peer's environment.
        peer: one of `harness.environments.PEERS`.
        spec: as in `peers/protocol.py`.

    Attributes:
        ready: the worker's first answer, and `spawn_seconds` from the start of the process until it came.

    Raises:
        WorkerError: it does not start.
    """

    def __init__(self, python: Path, peer: str, spec: dict[str, Any]):
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        script = PEERS / f"{peer.replace('-', '_')}_worker.py"
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps({**spec, "spawned": time.time()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            # A stopped process in a group whose shell has gone would have the whole group hung up.
            start_new_session=True,
        )
        self.system = psutil.Process(self._process.pid)
        try:
            self.ready = self._receive(_TIMEOUT)
        except WorkerError:
            self.close()
            raise
        self.ready["spawn_seconds"] = time.perf_counter() - begin
        self.pause()

    def ask(self, request: dict[str, Any], timeout: float = _TIMEOUT) -> dict[str, Any]:
        """Answer one request; `disturbed` says what share of the time other processes took a core.

        Raises:
            WorkerError: the peer cannot, the request failed, or it took longer than `timeout` seconds.
        """
        assert self._process.stdin
        self.resume()
        try:
            with Watch() as watch:
                try:
                    self._process.stdin.write(json.dumps(request) + "\n")
                    self._process.stdin.flush()
                except OSError as error:
                    raise WorkerError(f"the worker is gone: {self._tail()}") from error
                answer = self._receive(timeout)
        finally:
            self.pause()
        return {**answer, "disturbed": watch.share(answer.get("cpu_seconds", 0.0))}

    def memory(self) -> int:
        """Resident bytes now."""
        return int(self.system.memory_info().rss)

    def pause(self) -> None:
        """Stop the process until `resume`."""
        self._if_alive(self.system.suspend)

    def resume(self) -> None:
        """Let it run."""
        self._if_alive(self.system.resume)

    def close(self) -> None:
        """End the process."""
        self._if_alive(self.system.kill)
        self._process.communicate()
        self._log.close()

    def _if_alive(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            act()

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            status = self._process.wait()
            raise WorkerError(f"the worker ended with status {status}: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "unsupported" in answer or "error" in answer:
            raise WorkerError(answer.get("unsupported") or answer["error"])
        return answer

    def _tail(self) -> str:
        """The last lines of its standard error."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return " / ".join(lines[-3:])[-400:] or "nothing on standard error"


class Watch:
    """How busy the machine was with others."""

    def __enter__(self) -> Watch:
        self._begin, self._busy = time.perf_counter(), _busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._begin
        self._busy = _busy_seconds() - self._busy

    def share(self, own: float) -> float:
        """Core seconds that others took, in parts of the elapsed time."""
        return max(self._busy - own, 0.0) / max(self._seconds, 1e-9)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
