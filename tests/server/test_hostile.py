"""Connections that are meant to do harm: each is refused, and the server answers the next as if nothing was."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from api_calls import chat
from raw_http import (
    AUTHORIZATION,
    JSON,
    POST,
    answer,
    connect,
    get,
    head,
    post,
    posted,
    receive,
    send,
    statuses,
    work_left,
)  # fmt: skip
from serving_command import Command

pytestmark = pytest.mark.usefixtures("goes_on")
Server = tuple[Command, httpx.Client]

SOUND = json.dumps(chat(max_tokens=1)).encode()
LENGTH = f"content-length: {len(SOUND)}"
HUGE = f"content-length: {10**12}"
SMUGGLED = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = "transfer-encoding: chunked"
BEARER = "authorization: Bearer"
WEBSOCKET = ("connection: upgrade", "upgrade: websocket", "sec-websocket-key: a", "sec-websocket-version: 13")

HOSTILE: dict[str, tuple[bytes, int, str | None]] = {
    "length": (posted(JSON, HUGE), 413, "body_too_large"),
    "length of digits": (posted(JSON, "content-length: " + "9" * 5000), 400, None),
    "expect": (posted(JSON, HUGE, "expect: 100-continue"), 413, "body_too_large"),
    "chunk": (posted(JSON, CHUNKED, body=b"ffffffffffffffff\r\n" + b"x" * 5_000_000), 413, "body_too_large"),
    "small chunks": (posted(JSON, CHUNKED, body=b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"), 400, "invalid_json"),
    "chunk extension": (posted(JSON, CHUNKED, body=b"1;" + b"x" * 1_000_000), 400, None),
    "length and chunks": (posted(JSON, "content-length: 5", CHUNKED, body=SMUGGLED), 400, "invalid_framing"),
    "two lengths": (posted(JSON, "content-length: 5", "content-length: 6", body=b"{}{}{}"), 400, None),
    "two encodings": (posted(JSON, f"{CHUNKED}, identity", body=SMUGGLED), 400, None),
    "unknown encoding": (posted(JSON, "transfer-encoding: xchunked", body=SMUGGLED), 400, None),
    "space before the colon": (posted(JSON, "transfer-encoding : chunked", body=SMUGGLED), 400, None),
    "length with a sign": (posted(JSON, "content-length: +5", body=b"{}{}{}"), 400, None),
    "length below 0": (posted(JSON, "content-length: -1"), 400, None),
    "NUL in a header": (get("/v1/models", "x: a\0b"), 400, None),
    "headers": (get("/v1/models", *(f"x-{n}: a" for n in range(5000))), 431, "headers_too_large"),
    "header": (get("/v1/models", "x: " + "a" * 40_000), 431, "headers_too_large"),
    "URL": (get("/" + "a" * 40_000), 414, "address_too_long"),
    "query": (get("/v1/models?" + "a" * 10_000), 414, "address_too_long"),
    "path up": (get("/" + "../" * 1000 + "etc/passwd"), 404, "not_found"),
    "path": (get("/v1/../metrics"), 404, "not_found"),
    "path in escapes": (get("/v1/%2e%2e/metrics"), 404, "not_found"),
    "path in a name": (get("/v1/models/..%2f..%2fetc%2fpasswd"), 404, "model_not_found"),
    "NUL in a path": (get("/v1/models/%00"), 404, "model_not_found"),
    "lines in a path": (get("/v1/models/%1b%5b2J%0d%0aset-cookie:%20a"), 404, "not_found"),
    "no UTF-8 in a path": (get("/v1/models/%ff%ed%a0%80"), 404, "model_not_found"),
    "another server": (get("http://evil.example/metrics"), 404, "not_found"),
    "two slashes": (get("//evil.example/metrics"), 404, "not_found"),
    "CONNECT": (head("CONNECT evil.example:443 HTTP/1.1"), 404, "not_found"),
    "OPTIONS": (head("OPTIONS * HTTP/1.1"), 404, "not_found"),
    "TRACE": (head("TRACE /v1/models HTTP/1.1"), 405, "method_not_allowed"),
    "DELETE": (head("DELETE /v1/models/sql HTTP/1.1"), 405, "method_not_allowed"),
    "method": (head("X" * 5000 + " /v1/models HTTP/1.1"), 405, "method_not_allowed"),
    "rebinding": (get("/v1/models", host="evil.example"), 400, "invalid_host"),
    "two hosts": (get("/v1/models", "host: evil.example"), 400, None),
    "no host": (get("/v1/models", host=None), 400, None),
    "no host in HTTP/1.0": (head("GET /v1/models HTTP/1.0", host=None), 400, "invalid_host"),
    "user in the host": (get("/v1/models", host="localhost@evil.example"), 400, "invalid_host"),
    "address in the host": (get("/v1/models", host="127.0.0.1.evil.example"), 400, "invalid_host"),
    "half an address": (get("/v1/models", host="[::1"), 400, "invalid_host"),
    "text": (posted("content-type: text/plain", LENGTH, body=SOUND), 415, "invalid_content_type"),
    "no type": (posted(LENGTH, body=SOUND), 415, "invalid_content_type"),
    "form": (posted("content-type: multipart/form-data; b=a", LENGTH, body=SOUND), 415, "invalid_content_type"),
    "gzip": (posted(JSON, "content-encoding: gzip", "content-length: 3", body=b"\x1f\x8b\b"), 400, "invalid_json"),
    "websocket": (posted(*WEBSOCKET, "content-length: 0"), 400, "missing_body"),
    "h2c": (posted("connection: upgrade", "upgrade: h2c", "content-length: 0"), 400, "missing_body"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_host"),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400, None),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400, None),
    "zeros": (b"\0" * 10_000, 400, None),
    "no key": (get("/v1/models", key=""), 401, "invalid_api_key"),
    "key in the URL": (get("/v1/models?api_key=the-key", key=""), 401, "invalid_api_key"),
    "two keys": (get("/v1/models", key=f"{AUTHORIZATION}, Bearer x"), 401, "invalid_api_key"),
    "a key twice": (get("/v1/models", AUTHORIZATION, key=f"{BEARER} x"), 401, "invalid_api_key"),
    "key of bytes": (get("/v1/models", key=f"{BEARER} \xff\xfe"), 401, "invalid_api_key"),
    "long key": (get("/v1/models", key=f"{BEARER} {'x' * 10_000}"), 401, "invalid_api_key"),
    "path past the key": (get("/health/../v1/models", key=""), 401, "invalid_api_key"),
    "path past the key in escapes": (get("/%68ealth%2f..%2fv1/models", key=""), 401, "invalid_api_key"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_requests_that_no_client_sends(kind: str, server: Server) -> None:
    """What is no HTTP gets status 400, and everything else an error object."""
    data, status, code = HOSTILE[kind]
    found, text = answer(server[0], data)
    assert status == found
    assert code is None or code == json.loads(text)["error"]["code"]


def stream_of(**fields: Any) -> bytes:
    """A request whose answer is a stream of many bytes."""
    body = json.dumps(
        chat(max_tokens=400, min_tokens=400, prompt_lookup=False, stream=True, **fields)
    ).encode()
    return head(POST, JSON, f"content-length: {len(body)}") + body


def ends(connection: socket.socket, seconds: float = 10) -> bool:
    """Whether the server closes a connection without a word."""
    connection.settimeout(seconds)
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


def test_a_body_that_stops(server: Server) -> None:
    """After the body timeout the client gets an error, and its connection is closed."""
    with connect(server[0]) as connection:
        send(connection, head(POST, JSON, "content-length: 1000") + b'{"model": ')
        status, text = receive(connection)
        assert (408, "body_timeout") == (status, json.loads(text)["error"]["code"])


def test_a_body_that_drips(server: Server) -> None:
    """A byte now and then does not prolong the time."""
    with connect(server[0]) as connection:
        send(connection, head(POST, JSON, "content-length: 1000"))
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            send(connection, b" ")
            time.sleep(0.1)
        assert 408 == receive(connection)[0]


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_headers_that_drip(before: bytes, server: Server) -> None:
    """Headers have a time too, in the first request of a connection and in later ones."""
    with connect(server[0]) as connection:
        if before:
            send(connection, before)
            assert 200 == receive(connection)[0]
        send(connection, b"GET /health HTTP/1.1\r\n")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            send(connection, b"x: a\r\n")
            time.sleep(0.1)
        assert ends(connection)


def test_connections_that_say_nothing(server: Server) -> None:
    """Too many connections block other clients for no longer than the header timeout."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server[0])) for _ in range(150)]
        assert all(ends(connection) for connection in connections)


@pytest.mark.parametrize(
    "data", [get("/v1/models"), posted(JSON, "content-length: 1000", body=b"{"), b"GET /he"]
)
def test_a_client_that_closes_its_half(data: bytes, server: Server) -> None:
    """It counts as gone, wherever in a request it stops."""
    with connect(server[0]) as connection:
        send(connection, data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass


@pytest.mark.parametrize("read", [0, 1])
def test_a_client_that_resets(read: int, server: Server) -> None:
    """A stream of eight answers ends with its connection."""
    with connect(server[0]) as connection:
        send(connection, stream_of(n=8))
        if read:
            assert connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_clients_that_never_read(server: Server) -> None:
    """Their answers end after the time to send; meanwhile others are answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(connect(server[0]))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            send(connection, stream_of(n=4, logprobs=True, top_logprobs=20))
        assert 200 == server[1].post("/v1/chat/completions", json=chat(max_tokens=4)).status_code
        end = time.monotonic() + 30
        while work_left(server[1]):
            assert time.monotonic() < end
            time.sleep(0.1)


def test_pipelined_requests(server: Server) -> None:
    """Pipelined requests are answered in order, and an invalid one closes the connection."""
    with connect(server[0]) as connection:
        send(connection, head("GET /health HTTP/1.1") * 20 + b"\0\0\r\n\r\n" + get("/v1/models"))
        assert ["200"] * 20 + ["400"] == statuses(connection)


def test_pipelined_requests_that_nobody_reads(server: Server) -> None:
    """A client that only asks is not read further than it reads."""
    with connect(server[0]) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20):
                connection.sendall(head("GET /openapi.json HTTP/1.1") * 1000)


def test_what_follows_a_refused_body_is_no_request(server: Server) -> None:
    """After an error in the middle of a body its rest is never read as a request."""
    data = head(POST, JSON, "content-length: 5000000") + head("GET /v1/models HTTP/1.1") * 10
    with connect(server[0]) as connection:
        send(connection, data)
        assert ["413"] == statuses(connection)


def test_many_at_once(server: Server) -> None:
    """Hostile requests side by side are refused as one alone is, and others are answered between them."""
    hostile = [
        b'{"a": [' + b",".join([b"{}"] * 500_000) + b"]}",
        b"[" * 1_000_000,
        json.dumps(chat(n=10**6)).encode(),
    ]

    def ask(body: bytes) -> int:
        return post(server[1], "/v1/chat/completions", body).status_code

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, [*hostile, SOUND] * 3))
    assert [400, 400, 400, 200] * 3 == found


def test_the_log_has_no_control_characters(server: Server) -> None:
    """Nothing that a client sends begins a line of the log, or steers the terminal that shows it."""
    command, client = server
    answer(command, head("GET /%0aFORGED%1b%5b2J HTTP/1.1", "x-request-id: a\x1b[2J", "user-agent: \x1b[2J"))
    post(client, "/v1/chat/completions", json.dumps(chat(model="\nFORGED\x1b[2J")))
    client.get("/health")
    end = time.monotonic() + 10
    while "GET /health" not in command.output.rpartition("FORGED")[2]:
        assert time.monotonic() < end
        time.sleep(0.02)
    lines = command.output.splitlines()
    assert [] == [line for line in lines if line.startswith("FORGED") or not line.isprintable()]
