"""A replica: the application of one machine with the experts of the configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from starlette.types import ASGIApp, Message

from hivellm_ort import ExpertManager
from hivellm_ort.errors import ExpertError, LoadError
from hivellm_ort.observability.exposition import MetricFamily
from hivellm_ort.ray.arguments import ClusterArguments, ExpertsConfig
from hivellm_ort.server import ServerOptions, create_app
from hivellm_ort.server.errors import ApiError
from hivellm_ort.server.state import ServerState

__all__ = ["HEARTBEAT_SECONDS", "ExpertReplica"]

HEARTBEAT_SECONDS = 5.0
"""Seconds without a message after which a replica sends a sign of life."""

_LOG = logging.getLogger("hivellm_ort")


class ExpertReplica:
    """Loads experts, and answers the requests that a gateway forwards.

    The manager knows all experts of the configuration. At most `max_loaded_experts` are in memory. Ray's
    multiplexing tells the router which ones.

    Args:
        arguments: The `ClusterArguments`, as JSON types.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = given = ClusterArguments.model_validate(arguments)
        self._manager = ExpertManager(
            max_loaded_experts=given.max_loaded_experts,
            memory_budget=given.memory_budget,
            prefix_cache_bytes=given.prefix_cache_bytes,
            device=given.device,
            cache_dir=given.cache_dir,
            threads=given.threads or _assigned_cores(),
            trust=given.trust,
        )
        # The gateway checks keys and host names.
        options = ServerOptions(allowed_hosts=("*",), limits=given.limits)
        self._app = create_app(self._manager, options, folders=_folders(given.base))
        self._experts: dict[str, Path] = {}
        self._failed: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._hold = _multiplexed(self._manager, given.max_loaded_experts)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Load new experts of the `user_config`, replace changed ones, and unload removed ones.

        Running requests keep their expert. A package that cannot be loaded changes nothing: an earlier package of
        the name stays. Without one, requests get status 503 and the reason. Errors are logged, because Ray would end
        the replica if this method raised.

        Raises:
            pydantic.ValidationError: The configuration is invalid, and no expert is loaded.
            LoadError: No expert can be loaded, and none is loaded.
        """
        async with self._changing:
            try:
                wanted = ExpertsConfig.model_validate(config).experts
                await asyncio.to_thread(self._change, wanted)
            except (ExpertError, ValidationError) as error:
                if not self._experts:
                    raise
                _LOG.error("the experts stay as they were: %s", error)

    def names(self) -> list[str]:
        """Return the experts of the configuration, and those that could not be unloaded."""
        return [*{**self._experts, **self._failed}]

    def metrics(self) -> tuple[str, list[MetricFamily]]:
        """Return the id of the replica and its metrics."""
        own = serve.get_replica_context().replica_id.unique_id
        failed = MetricFamily(
            "failed_experts",
            "gauge",
            "Experts of the configuration whose package could not be loaded.",
            ("expert",),
            {(name,): 1 for name in self._failed},
        )
        return own, [*self._manager.metrics.families(), *self._state.metrics.families(), failed]

    async def check_health(self) -> None:
        """Raise if the replica can no longer answer. Ray then replaces it."""
        await asyncio.to_thread(self._manager.stats)

    async def answer(self, scope: dict[str, Any], body: bytes, model: str) -> AsyncIterator[list[Message]]:
        """Answer one request with the application.

        The first list comes immediately. An empty list every few seconds is a sign of life.

        Args:
            scope: The ASGI scope, as JSON types and bytes.
            body: The whole body.
            model: The model that the body names; empty for none.

        Yields:
            Lists of ASGI messages of the application.
        """
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        answering = asyncio.create_task(self._answer(scope, body, model, sent))
        answering.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            yield []
            ended = False
            while not ended:
                messages = await _next(sent)
                ended = None in messages
                yield [message for message in messages if message is not None]
        finally:
            if not answering.done():  # the gateway cancelled it: its client disconnected
                answering.cancel()
                await asyncio.wait((answering,))

    def __del__(self) -> None:
        """Cancel running answers when Ray stops the replica."""
        if hasattr(self, "_app"):
            self._state.stop()
            self._manager.close()

    async def _answer(
        self, scope: dict[str, Any], body: bytes, model: str, sent: asyncio.Queue[Message | None]
    ) -> None:
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await asyncio.Future()  # a client that disconnects cancels this task
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.put_nowait(message)

        app: ASGIApp = self._app
        if model in self._experts:
            try:
                await self._hold(model)
            except ExpertError as error:
                _LOG.warning(
                    "expert %r is unavailable: %s", model, error
                )  # the application answers with the error
        elif model in self._failed:
            app = _unavailable(model, self._state.remove_paths(self._failed[model])).response
        try:
            await app({**scope, "state": {}, "extensions": {}}, receive, send)
        except Exception:  # the client has the error already
            _LOG.exception("a request failed")

    def _change(self, wanted: dict[str, Path]) -> None:
        self._state.add_folders(path.absolute().parent for path in wanted.values())
        self._failed = {}
        new = {name: path for name, path in wanted.items() if name not in self._experts}
        changed = {
            name: path for name, path in wanted.items() if name not in new and self._experts[name] != path
        }
        try:
            self._manager.load_experts(new, base=self._arguments.base)
            self._experts.update(new)
        except LoadError:  # it loads all or none: try each
            self._load_each(new)
        self._load_each(changed, replace=True)
        for name in sorted(set(self._experts) - set(wanted)):
            try:
                self._manager.unload_expert(name)
                del self._experts[name]
            except LoadError as error:
                _LOG.error("expert %r stays: %s", name, error)
        if self._failed and not self._experts:
            raise LoadError("; ".join(f"{name}: {reason}" for name, reason in self._failed.items()))

    def _load_each(self, packages: dict[str, Path], *, replace: bool = False) -> None:
        left = dict(packages)
        before = len(left) + 1
        while len(left) < before:  # an expert may require a later one
            before = len(left)
            for name, path in list(left.items()):
                try:
                    self._manager.load_expert(name, path, base=self._arguments.base, replace=replace)
                except LoadError as error:
                    self._failed[name] = str(error)
                else:
                    self._failed.pop(name, None)
                    self._experts[name] = left.pop(name)
        for name in left:
            _LOG.error("expert %r cannot be loaded: %s", name, self._failed[name])

    @property
    def _state(self) -> ServerState:
        state: ServerState = self._app.state.server
        return state


def _multiplexed(manager: ExpertManager, most: int | None) -> Any:
    """Return a function that tells Ray which experts are in memory. The manager loads and evicts them."""

    async def hold(name: str) -> str:
        await asyncio.to_thread(manager.tokenizer, name)  # loads an evicted expert
        return name

    return serve.multiplexed(hold, max_num_models_per_replica=-1 if most is None else most)


async def _next(sent: asyncio.Queue[Message | None]) -> list[Message | None]:
    """Return all queued messages; an empty list if none comes in time."""
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            found = [await sent.get()]
    except TimeoutError:
        return []
    while not sent.empty():
        found.append(sent.get_nowait())
    return found


def _unavailable(name: str, reason: str) -> ApiError:
    return ApiError(
        503, f"the expert {name!r} could not be loaded: {reason}", param="model", code="model_unavailable"
    )


def _assigned_cores() -> int:
    cores: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, int(cores))


def _folders(base: Path | None) -> list[Path]:
    return [] if base is None else [base.absolute()]
