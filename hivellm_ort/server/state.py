"""The state that all requests of an application share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from fastapi import Request

from hivellm_ort.manager import ExpertManager
from hivellm_ort.paths import StrPath, without_folders
from hivellm_ort.server.errors import ApiError, retry_error
from hivellm_ort.server.http_metrics import HttpMetrics
from hivellm_ort.server.options import ServerOptions

__all__ = ["Cancellable", "ServerState", "server_state", "shutting_down"]


class Cancellable(Protocol):
    """A running answer."""

    def cancel(self) -> None:
        """Cancel the answer."""


class ServerState:
    """The manager, the options and the running answers. Use it in one event loop only.

    Args:
        manager: The manager of the experts. The application never closes it.
        options: The options of the server.
        folders: Folders whose paths are removed from messages, besides those of Python and of the user.

    Attributes:
        manager: As given.
        options: As given.
        metrics: The metrics of HTTP.
        started: When the application was created, as Unix time in seconds.
        loading: Held while an expert is loaded or unloaded.
        draining: Whether new requests are refused.
        stopped: Whether the running answers were cancelled, because the server stops.
    """

    def __init__(
        self, manager: ExpertManager, options: ServerOptions, folders: Iterable[StrPath] = ()
    ) -> None:
        self.manager = manager
        self.options = options
        self.metrics = HttpMetrics()
        self.started = int(time.time())
        self.loading = asyncio.Lock()
        self.draining = self.stopped = False
        self._folders = set(folders)
        self._running: set[Cancellable] = set()
        self._reserved = 0

    def remove_paths(self, text: str) -> str:
        """Return a message without the paths of this machine."""
        own = self.options.loading_folder
        return without_folders(text, self._folders if own is None else {*self._folders, own, own.resolve()})

    def add_folders(self, folders: Iterable[StrPath]) -> None:
        """Remove the paths of these folders from messages too."""
        self._folders.update(folders)

    def reserve(self, answers: int) -> None:
        """Reserve places in the queue. `release` gives back one place.

        Args:
            answers: How many places.

        Raises:
            ApiError: Too many answers wait already, or the server is shutting down.
        """
        if self.draining:
            raise shutting_down()
        limit = self.options.limits.max_waiting
        rows = sum(base["rows"] for base in self.manager.stats()["bases"])
        # The only request is always accepted, with any number of answers.
        if self._reserved and self._reserved + answers > rows + limit:
            self.metrics.full += 1
            message = (
                f"{self._reserved} answers run or wait for one of {rows} rows, and at most {limit} may wait"
            )
            raise retry_error(429, message, "queue_full")
        self._reserved += answers

    def release(self) -> None:
        """Give back the place of an answer that has ended."""
        self._reserved -= 1

    def register(self, answers: Cancellable) -> None:
        """Cancel the answers when the server stops."""
        self._running.add(answers)
        if self.stopped:
            answers.cancel()

    def unregister(self, answers: Cancellable) -> None:
        """Forget answers that have ended."""
        self._running.discard(answers)

    def drain(self) -> None:
        """Refuse new requests. Running answers go on."""
        self.draining = True

    def stop(self) -> None:
        """Cancel all answers. Their clients get `shutting_down`."""
        self.draining = self.stopped = True
        for answers in list(self._running):
            answers.cancel()


def shutting_down() -> ApiError:
    """Return the error for requests while the server shuts down."""
    return retry_error(503, "the server is shutting down: retry", "shutting_down")


def server_state(request: Request) -> ServerState:
    """Return the state of the application of a request."""
    state: ServerState = request.app.state.server
    return state
