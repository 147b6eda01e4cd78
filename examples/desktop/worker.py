"""The thread that loads experts and asks them, and the messages that it sends.

Nothing here knows the window. The window calls methods, and reads the messages from a queue when it has time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hivellm_ort import ExpertInfo, ExpertManager, InferenceResult, TextStream

__all__ = ["Answered", "Closed", "Failed", "Loaded", "Logged", "Message", "Piece", "Worker"]


@dataclass(frozen=True)
class Loaded:
    """An expert can be asked, on an execution provider of ONNX Runtime."""

    info: ExpertInfo
    provider: str


@dataclass(frozen=True)
class Piece:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The answer has ended, by itself or because it was stopped."""

    result: InferenceResult


@dataclass(frozen=True)
class Failed:
    """A package was not loaded, or a question was not answered to its end."""

    error: Exception


@dataclass(frozen=True)
class Logged:
    """A warning of the library."""

    text: str


@dataclass(frozen=True)
class Closed:
    """The memory is free, and the thread ends."""


Message = Loaded | Piece | Answered | Failed | Logged | Closed
"""Each `load` gives `Loaded` or `Failed`, each `ask` gives `Answered` or `Failed`. `Closed` is the last message."""


class Worker:
    """Loads and asks experts in a thread of its own, one thing after the other. No method waits.

    Args:
        base: Base bundle of thin packages.
        loading: Options of `ExpertManager`.

    Attributes:
        messages: What happened, in order.
    """

    def __init__(self, *, base: Path | None = None, **loading: Any):
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self._base = base
        self._manager = ExpertManager(**loading)
        self._tasks: SimpleQueue[Callable[[], Message] | None] = SimpleQueue()
        self._stream: TextStream | None = None
        self._stopped, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="experts")
        self._thread.start()

    def load(self, path: Path) -> None:
        """Load a package under the name of its file. It replaces one of the same name."""
        self._tasks.put(lambda: self._load(path))

    def ask(self, name: str | None, question: str, **options: Any) -> None:
        """Answer a question; ask the next one after that.

        Args:
            name: The expert; None for the one that fits the question.
            question: The prompt.
            options: As for `ExpertManager.generate_stream`.
        """
        self._stopped.clear()
        self._tasks.put(lambda: self._answer(name, question, options))

    def stop(self) -> None:
        """End the running answer. Its current step is finished."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def close(self) -> None:
        """End the answer, free the memory and end the thread. A package that is being loaded is loaded first."""
        self._closed.set()
        self.stop()
        self._tasks.put(None)

    def _run(self) -> None:
        log, handler = logging.getLogger("hivellm_ort"), _Listener(self.messages)
        log.addHandler(handler)
        try:
            with self._manager:
                while (task := self._tasks.get()) is not None:
                    if not self._closed.is_set():
                        self.messages.put(self._done(task))
        finally:
            log.removeHandler(handler)
            self.messages.put(Closed())

    def _done(self, task: Callable[[], Message]) -> Message:
        try:
            return task()
        except Exception as error:  # the window shows any error, and the thread goes on
            return Failed(error)

    def _load(self, path: Path) -> Message:
        info = self._manager.load_expert(path.stem, path, base=self._base, replace=True)
        bases = self._manager.stats()["bases"]
        return Loaded(info, next(base["provider"] for base in bases if base["sha256"] == info.base_sha256))

    def _answer(self, name: str | None, question: str, options: dict[str, Any]) -> Message:
        name = name or self._manager.choose(question, schema=options.get("schema"))
        with self._manager.generate_stream(name, question, **options) as stream:
            self._stream = stream
            if self._stopped.is_set():  # before there was a stream to cancel
                stream.cancel()
            try:
                for piece in stream:
                    self.messages.put(Piece(piece))
            finally:
                self._stream = None
        return Answered(stream.result)


class _Listener(logging.Handler):
    def __init__(self, messages: SimpleQueue[Message]):
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put(Logged(record.getMessage()))
