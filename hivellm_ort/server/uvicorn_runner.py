"""Runs the application in a process of its own, with uvicorn."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hivellm_ort.errors import OptionError, argument
from hivellm_ort.server.state import ServerState

__all__ = ["ListenOptions", "is_local", "run"]

_GRACE_SECONDS = 5  # after the drain, for responses to be sent


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where the server listens, and how it ends.

    Attributes:
        host: a name or an address of this machine.
        port: 0 for any that is free.
        certificate: of TLS, in PEM; None for plain HTTP.
        private_key: of the certificate, in PEM; None where the certificate's file has it too.
        drain_seconds: how long answers that go on may take when the process is told to end. Then they are ended, and
            their clients are told to ask again; the process ends at most five seconds later.
        access_log: whether each request is logged.
        max_connections: open connections; further ones are closed at once.
        header_seconds: in which the headers of a request must arrive; then its connection is closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
    drain_seconds: float = 30.0
    access_log: bool = False
    max_connections: int = 512
    header_seconds: float = 10.0


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: FastAPI, options: ListenOptions, started: Callable[[str], None]) -> None:
    """Serve an application until SIGTERM, SIGINT (Ctrl-C) or a second one of them, which does not wait.

    Args:
        app: of `create_app`.
        options: where.
        started: gets the address when requests are answered.

    Raises:
        OSError: the address is in use or none of this machine's, or a file of TLS cannot be read.
        OptionError: a file of TLS is none.
    """
    if options.private_key is not None and options.certificate is None:
        raise OptionError(f"{argument('ssl_keyfile')} needs {argument('ssl_certfile')}")
    config = uvicorn.Config(
        app,
        http=_protocol(options),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning" if not options.access_log else "info",
        access_log=options.access_log,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(options.drain_seconds) + _GRACE_SECONDS,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.private_key,
    )
    try:
        config.load()
    except OSError as error:  # of ssl, too, which names no file
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise OptionError(
            f"{argument('ssl_certfile')}: no certificate with its key in PEM: {error}"
        ) from error
    with _listening_socket(options.host, options.port) as bound:
        scheme = "http" if options.certificate is None else "https"
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{scheme}://{host}:{bound.getsockname()[1]}"
        _Server(config, app.state.server, options.drain_seconds, lambda: started(address)).run([bound])


def _protocol(options: ListenOptions) -> type[H11Protocol]:
    """HTTP/1.1 as uvicorn speaks it, within limits: uvicorn waits for headers without end."""

    class Limited(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > options.max_connections:
                transport.abort()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self.late is None:
                self.late = self.loop.call_later(options.header_seconds, self.transport.abort)

        def _stop(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return Limited


def _listening_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.set_inheritable(False)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return bound


class _Server(uvicorn.Server):
    """A server whose answers have some seconds to end when it is told to."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, drain_seconds: float, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._state, self._drain_seconds, self._on_start = state, drain_seconds, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. It is not raised again at the end: whoever drains has nothing to complain of."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for the answers that go on."""
        ending = asyncio.create_task(self._drain())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            self._state.stop()

    async def _drain(self) -> None:
        self._state.drain()
        await asyncio.sleep(self._drain_seconds)
        self._state.stop()
