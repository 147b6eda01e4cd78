"""Requests byte by byte, as no library of HTTP would send them."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from urllib.parse import urlsplit

import httpx
from serving_command import Command

__all__ = [
    "AUTHORIZATION", "JSON", "KEY", "POST", "answer", "connect", "get", "head", "post", "posted", "receive", "send",
    "statuses", "work_left",
]  # fmt: skip

KEY = "the-key"
AUTHORIZATION = f"authorization: Bearer {KEY}"
POST = "POST /v1/chat/completions HTTP/1.1"
JSON = "content-type: application/json"


def connect(command: Command) -> socket.socket:
    """A connection of its own."""
    address = urlsplit(command.address)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 0), timeout=30)


def head(first: str, *headers: str, host: str | None = "localhost", key: str = AUTHORIZATION) -> bytes:
    """The beginning of a request."""
    lines = [first, *([] if host is None else [f"host: {host}"]), *([key] if key else []), *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def get(path: str, *headers: str, host: str | None = "localhost", key: str = AUTHORIZATION) -> bytes:
    """A request without a body."""
    return head(f"GET {path} HTTP/1.1", *headers, host=host, key=key)


def posted(*headers: str, body: bytes = b"") -> bytes:
    """A request to the route of chats; its headers are as given."""
    return head(POST, *headers) + body


def send(connection: socket.socket, data: bytes) -> None:
    """Send what the server takes; it may refuse before it has all."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def receive(connection: socket.socket) -> tuple[int, str]:
    """Status and body of a response; status 0 where the connection ended without one."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, response.read().decode()
    except (http.client.HTTPException, ConnectionResetError):
        return 0, ""


def answer(command: Command, data: bytes) -> tuple[int, str]:
    """What the server answers to bytes."""
    with connect(command) as connection:
        send(connection, data)
        return receive(connection)


def statuses(connection: socket.socket) -> list[str]:
    """The status of every response until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return re.findall(r"HTTP/1\.1 (\d+)", data.decode())


def post(client: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    """Send JSON as it is written."""
    return client.post(path, content=body, headers={"content-type": "application/json"})


def work_left(client: httpx.Client) -> dict[str, float]:
    """What the server is still doing, by the names of its metrics."""
    text = client.get("/metrics").text
    found = dict(re.findall(r"^hivellm_ort_(\w+)(?:{[^}]*})? ([\d.]+)$", text, re.MULTILINE))
    names = ("active_requests", "queued_requests", "http_requests_in_progress")
    work = {name: float(found[name]) for name in names}
    work["http_requests_in_progress"] -= 1  # this one
    return {name: value for name, value in work.items() if value}
