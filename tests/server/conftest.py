"""Two tiny experts, the application in this process, and the command in another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

for _needed in ("fastapi", "httpx", "uvicorn"):
    pytest.importorskip(_needed, reason="needs the extra server")

from fastapi.testclient import TestClient
from serving_command import Command
from support.golden import BASE, golden
from tool_base import write_tool_base

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


@pytest.fixture(scope="session")
def tool_command(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The same with the expert `sql` on a base whose template shows tools."""
    base = write_tool_base(tmp_path_factory.mktemp("tools") / "base")
    arguments = ["--expert", f"sql={golden('sql')}", "--base", str(base), "--threads", "1", "--trust", "off"]
    with Command(arguments, cache) as command:
        yield command
