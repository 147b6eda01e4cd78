"""Clients of a server, each with a stream: bodies of `/v1/completions` in, seconds until all have ended out.

    python http_clients.py http://127.0.0.1:8000 < bodies.json

With the standard library alone, so that the clients take little from the server that they measure.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit


def read(address: str, body: dict[str, Any]) -> None:
    """Ask, and read the stream to its end."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    last = b""
    while part := response.read1(65536):
        last = (last + part)[-64:]
    if response.status != 200 or not last.endswith(b"data: [DONE]\n\n"):
        raise SystemExit(f"status {response.status}: {last.decode('utf-8', 'replace')}")


def main() -> None:
    """Run and print it."""
    bodies = json.load(sys.stdin)
    with ThreadPoolExecutor(len(bodies)) as pool:
        begin = time.perf_counter()
        for future in [pool.submit(read, sys.argv[1], body) for body in bodies]:
            future.result()
        print(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
