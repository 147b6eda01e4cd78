"""The command `hivellm-ort serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

_SECONDS = 60


class Command:
    """A process that serves; it is killed at the end where it runs still.

    Args:
        arguments: of the command, without `--port`.
        home: for `HIVELLM_HOME`.
        environment: more variables.

    Attributes:
        address: where it listens.
        process: the process.
    """

    def __init__(self, arguments: list[str], home: Path, environment: dict[str, str] | None = None) -> None:
        self._arguments = [sys.executable, "-m", "hivellm_ort", "serve", "--port", "0", *arguments]
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
