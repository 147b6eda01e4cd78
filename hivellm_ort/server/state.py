"""What all requests of one application share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from fastapi import Request

from hivellm_ort.manager import ExpertManager
from hivellm_ort.paths import StrPath, without_folders
from hivellm_ort.server.errors import ApiError
from hivellm_ort.server.http_metrics import HttpMetrics
from hivellm_ort.server.options import ServerOptions

__all__ = ["Cancellable", "ServerState", "server_state", "shutting_down"]

_RETRY_SECONDS = 1  # after which a place in the queue may be free: an answer takes about that long


class Cancellable(Protocol):
    """An answer that is being generated."""

    def cancel(self) -> None:
        """End it."""


class ServerState:
    """The manager, the options, and the answers that are being generated. For one event loop.

    Args:
        manager: whose experts are served; the application never closes it.
        options: what the operator set.
        folders: what messages leave out, with the folders that Python and the user have.

    Attributes:
        manager: as given.
        options: as given.
        metrics: what HTTP adds to the manager's metrics.
        started: `time.time()`.
        loading: held while an expert is loaded or unloaded.
        draining: whether nothing new is taken.
        stopped: whether the answers that went on were ended, because the server stops.
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
        self._admitted = 0

    def remove_paths(self, text: str) -> str:
        """A message without the paths of this machine."""
        own = self.options.loading_folder
        return without_folders(text, self._folders if own is None else {*self._folders, own, own.resolve()})

    def add_folders(self, folders: Iterable[StrPath]) -> None:
        """Leave these folders out of messages too."""
        self._folders.update(folders)

    def reserve(self, answers: int) -> None:
        """Take so many answers into the queue; `leave` gives back the place of each.

        Raises:
            ApiError: too many wait already, or the server is shutting down.
        """
        if self.draining:
            raise shutting_down()
        limit = self.options.limits.max_waiting
        rows = sum(base["rows"] for base in self.manager.stats()["bases"])
        # A request that is alone is taken, however many answers it wants.
        if self._admitted and self._admitted + answers > rows + limit:
            self.metrics.full += 1
            raise ApiError(
                429,
                f"{self._admitted} answers are being written or wait for one of {rows} rows, and {limit} may wait: "
                f"ask again in {_RETRY_SECONDS} s",
                code="queue_full",
                headers={"retry-after": str(_RETRY_SECONDS)},
            )
        self._admitted += answers

    def release(self) -> None:
        """Give back the place of an answer that has ended."""
        self._admitted -= 1

    def register(self, answers: Cancellable) -> None:
        """Have the answers be ended when the server stops."""
        self._running.add(answers)
        if self.stopped:
            answers.cancel()

    def unregister(self, answers: Cancellable) -> None:
        """They have ended by themselves."""
        self._running.discard(answers)

    def drain(self) -> None:
        """Take no more answers; those that go on may end."""
        self.draining = True

    def stop(self) -> None:
        """End all answers now; their clients are told to ask again."""
        self.draining = self.stopped = True
        for answers in list(self._running):
            answers.cancel()


def shutting_down() -> ApiError:
    """What a client is told when the server stops."""
    return ApiError(
        503,
        "the server is shutting down: ask again",
        code="shutting_down",
        headers={"retry-after": str(_RETRY_SECONDS)},
    )


def server_state(request: Request) -> ServerState:
    """The state of the application that a request came to."""
    state: ServerState = request.app.state.server
    return state
