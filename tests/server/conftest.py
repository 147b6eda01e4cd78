"""Two tiny experts, the application in this process, and the command in others."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

for _needed in ("fastapi", "httpx", "uvicorn"):
    pytest.importorskip(_needed, reason="needs the extra server")

import httpx
from asking import QUESTION, chat
from fastapi.testclient import TestClient
from raw_http import KEY, work_left
from serving_command import Command
from support.golden import BASE, GOLDEN, golden

from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerOptions, create_app


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For `cache_dir` and `HIVELLM_HOME`."""
    return tmp_path_factory.mktemp("server-cache")


@pytest.fixture(scope="session")
def manager(cache: Path) -> Iterator[ExpertManager]:
    """The experts `sql` and `json` on one base, and `thinks` on another thread of it."""
    with ExpertManager(cache_dir=cache, threads=1, trust="off") as manager:
        manager.load_experts({"sql": golden("sql"), "json": golden("json")}, base=BASE)
        yield manager


@pytest.fixture
def client(manager: ExpertManager) -> Iterator[TestClient]:
    """A client of the application with its default options."""
    with TestClient(create_app(manager, ServerOptions()), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="session")
def command(cache: Path) -> Iterator[Command]:
    """`hivellm-ort serve` with both experts, in a process of its own."""
    experts = ["--expert", f"sql={golden('sql')}", "--expert", f"json={golden('json')}", "--base", str(BASE)]
    with Command([*experts, "--threads", "1", "--trust", "off"], cache) as command:
        yield command


MOST_GROWTH = 512 << 20
"""Bytes that hostile requests may add to a server at its peak; the grammar engine takes 300 MB to refuse a regex."""


@pytest.fixture(scope="session")
def server(cache: Path) -> Iterator[tuple[Command, httpx.Client]]:
    """A server that waits for clients for a second only, with a client that has its key."""
    arguments = ["--expert", f"sql={golden('sql')}", "--base", str(BASE), "--allow-loading", str(GOLDEN)]
    arguments += ["--threads", "1", "--trust", "off", "--body-timeout", "1", "--send-timeout", "1"]
    arguments += ["--header-timeout", "1", "--max-connections", "100", "--access-log"]
    with (
        Command(arguments, cache, {"HIVELLM_API_KEYS": KEY}) as command,
        httpx.Client(
            base_url=command.address, headers={"authorization": f"Bearer {KEY}"}, timeout=60
        ) as client,
    ):
        client.post("/v1/chat/completions", json=chat(regex="[a-z]{3}")).raise_for_status()  # imports all
        begin = _memory(command)
        yield command, client
        assert _memory(command) - begin < MOST_GROWTH
        assert "Traceback" not in command.output


def _memory(command: Command) -> int:
    """The most bytes that a process had so far, where the system tells."""
    process = psutil.Process(command.process.pid)
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return int(process.memory_info().rss)
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@pytest.fixture(scope="session")
def usual_answer(manager: ExpertManager) -> str:
    """What a server answers to a request that is in order."""
    return manager.generate("sql", QUESTION, max_tokens=8).text


@pytest.fixture
def goes_on(server: tuple[Command, httpx.Client], usual_answer: str) -> Iterator[None]:
    """After the test the next request is answered right, and nothing is left in the server."""
    yield
    _, client = server
    response = client.post("/v1/chat/completions", json=chat(max_tokens=8))
    assert (200, usual_answer) == (response.status_code, response.json()["choices"][0]["message"]["content"])
    end = time.monotonic() + 10
    while left := work_left(client):
        assert time.monotonic() < end, left
        time.sleep(0.02)
