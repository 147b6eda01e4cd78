"""Runs the application with uvicorn: sockets, TLS, signals, shutdown."""

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

_GRACE_SECONDS = 5  # after the drain, to send the last responses


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Address, TLS, connection limits and shutdown of the server.

    Attributes:
        host: A name or an address of this machine.
        port: The port; 0 for any free port.
        certificate: The TLS certificate, in PEM; None for plain HTTP.
        private_key: The key of the certificate, in PEM; None if it is in the file of the certificate.
        drain_seconds: How long running answers may take after SIGTERM. Then they are cancelled, and their clients
            get `shutting_down`. The process ends at most five seconds later.
        access_log: Whether to log each request.
        max_connections: Most open connections. Further ones are closed at once.
        header_seconds: Seconds in which the headers of a request must arrive. Then its connection is closed.
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
    """Return whether only this machine can connect to the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: FastAPI, options: ListenOptions, started: Callable[[str], None]) -> None:
    """Serve an application until SIGTERM or SIGINT (Ctrl-C). A second signal ends it without the drain.

    Args:
        app: The application of `create_app`.
        options: Address, TLS, connection limits and shutdown.
        started: Called with the address when the server accepts requests.

    Raises:
        OSError: The address is in use or not of this machine, or a TLS file cannot be read.
        OptionError: A TLS file is invalid.
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
    except OSError as error:  # ssl.SSLError is an OSError too, and names no file
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise OptionError(
            f"{argument('ssl_certfile')}: it is not a certificate with its key in PEM: {error}"
        ) from error
    with _listening_socket(options.host, options.port) as bound:
        scheme = "http" if options.certificate is None else "https"
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{scheme}://{host}:{bound.getsockname()[1]}"
        _Server(config, app.state.server, options.drain_seconds, lambda: started(address)).run([bound])


def _protocol(options: ListenOptions) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with limits. Uvicorn itself would wait for headers forever."""

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
    """A server that lets running answers end before it shuts down."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, drain_seconds: float, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._state, self._drain_seconds, self._on_start = state, drain_seconds, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. It is not raised again at the end: after a drain the exit status is 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, and wait for the running answers."""
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
