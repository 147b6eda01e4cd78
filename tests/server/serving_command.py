"""The command `hivellm-ort serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

_SECONDS = 60


# Every step takes a hundredth of a second: a tiny model has written its longest answer before a signal arrives.
_SLOW = """
import sys, time
from hivellm_ort.cli.main import main
from hivellm_ort.engine.decoder import Decoder

def slowed(function):
    def slow(*arguments, **options):
        time.sleep(0.01)
        return function(*arguments, **options)
    return slow

Decoder.append, Decoder.step = slowed(Decoder.append), slowed(Decoder.step)
main(prog_name="hivellm-ort")
"""


class Command:
    """A process that serves; it is killed at the end where it runs still.

    Args:
        arguments: of the command, without `--port`.
        home: for `HIVELLM_HOME`.
        environment: more variables.
        slow: whether answers take seconds.

    Attributes:
        address: where it listens.
        process: the process.
    """

    def __init__(
        self,
        arguments: list[str],
        home: Path,
        environment: dict[str, str] | None = None,
        *,
        slow: bool = False,
    ) -> None:
        program = ["-c", _SLOW] if slow else ["-m", "hivellm_ort"]
        self._arguments = [sys.executable, *program, "serve", "--port", "0", *arguments]
        self._environment = {**os.environ, "HIVELLM_HOME": str(home), **(environment or {})}
        self._lines: list[str] = []
        self._listening = threading.Event()
        self.address = ""

    @property
    def output(self) -> str:
        """What it has written to standard error."""
        return "".join(self._lines)

    def end(self, seconds: float = _SECONDS) -> int:
        """Its exit status, once it has ended."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def __enter__(self) -> Command:
        self.process = subprocess.Popen(
            self._arguments, stderr=subprocess.PIPE, text=True, env=self._environment, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(_SECONDS), self.output
        assert self.address, self.output
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if found := re.search(r" at (https?://\S+)$", line):
                self.address = found[1]
                self._listening.set()
        self._listening.set()
