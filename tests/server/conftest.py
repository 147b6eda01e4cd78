"""Two tiny experts, the application in this process, and the command in others."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

for _needed in ("fastapi", "httpx", "uvicorn"):
    pytest.importorskip(_needed, reason="needs the extra server")

import httpx
from api_calls import QUESTION, chat
from fastapi.testclient import TestClient
from raw_http import KEY, work_left
from serving_command import Command
from support.golden import BASE, GOLDEN, golden
from support.tool_base import scripted, write_tool_base

from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerOptions, create_app


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For `cache_dir` and `HIVELLM_HOME`."""
    return tmp_path_factory.mktemp("server-cache")


@pytest.fixture(scope="module")
def manager(cache: Path) -> Iterator[ExpertManager]:
    """The experts `sql` and `json` on one base. It is closed: other tests check that no base stays in memory."""
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
    """A server with timeouts of one second, and a client with its key."""
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
    """Return the peak memory of a process in bytes, or the current memory if the system has no peak."""
    process = psutil.Process(command.process.pid)
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return int(process.memory_info().rss)
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@pytest.fixture(scope="module")
def usual_answer(manager: ExpertManager) -> str:
    """The answer of a server to a valid request."""
    return manager.generate("sql", QUESTION, max_tokens=8).text


@pytest.fixture
def goes_on(server: tuple[Command, httpx.Client], usual_answer: str) -> Iterator[None]:
    """After the test, a valid request is answered correctly, and the server is idle."""
    yield
    _, client = server
    response = client.post("/v1/chat/completions", json=chat(max_tokens=8))
    assert (200, usual_answer) == (response.status_code, response.json()["choices"][0]["message"]["content"])
    end = time.monotonic() + 10
    while left := work_left(client):
        assert time.monotonic() < end, left
        time.sleep(0.02)


@pytest.fixture(scope="session")
def tool_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose template shows tools."""
    return write_tool_base(tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture(scope="module")
def caller(cache: Path, tool_base: Path) -> Iterator[ExpertManager]:
    """The expert `sql` on the base `tool_base`."""
    with ExpertManager(cache_dir=cache, threads=1, trust="off") as manager:
        manager.load_expert("sql", golden("sql"), base=tool_base)
        yield manager


@pytest.fixture
def tooled(caller: ExpertManager) -> Iterator[TestClient]:
    """A client of an application with `caller`."""
    with TestClient(create_app(caller), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def say(caller: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the model write a text, where no grammar forces tokens, and end."""
    generate_stream = ExpertManager.generate_stream

    def say(text: str) -> None:
        script = [*caller.tokenizer("sql").encode(text), 2]

        def saying(manager: ExpertManager, name: str, prompt: str | None = None, **options: Any) -> Any:
            shown = {key: options.get(key) for key in ("messages", "tools", "enable_thinking")}
            begin = len(manager.prompt_ids(name, prompt, **shown))  # type: ignore[arg-type]
            return generate_stream(manager, name, prompt, **options, processors=[scripted(script, begin)])

        monkeypatch.setattr(ExpertManager, "generate_stream", saying)

    return say


@pytest.fixture(scope="module")
def tool_command(cache: Path, tool_base: Path) -> Iterator[Command]:
    """`hivellm-ort serve` with the expert `sql` on a base whose template shows tools."""
    arguments = [
        "--expert",
        f"sql={golden('sql')}",
        "--base",
        str(tool_base),
        "--threads",
        "1",
        "--trust",
        "off",
    ]
    with Command(arguments, cache) as command:
        yield command


@pytest.fixture
def api(command: Command) -> Iterator[Any]:
    """OpenAI's client of `command`."""
    openai = pytest.importorskip("openai", reason="needs openai")
    with openai.OpenAI(base_url=f"{command.address}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture
def tool_api(tool_command: Command) -> Iterator[Any]:
    """OpenAI's client of `tool_command`."""
    openai = pytest.importorskip("openai", reason="needs openai")
    with openai.OpenAI(base_url=f"{tool_command.address}/v1", api_key="none", max_retries=0) as api:
        yield api
