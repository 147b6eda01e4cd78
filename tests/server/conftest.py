"""Two tiny experts, the application in this process, and the command in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture(scope="module")
def manager(cache: Path) -> Iterator[ExpertManager]:
    """The experts `sql` and `json` on one base; other tests look whether any base is left in memory."""
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
def tool_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with such a template."""
    return write_tool_base(tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture(scope="module")
def caller(cache: Path, tool_base: Path) -> Iterator[ExpertManager]:
    """The expert `sql` on it."""
    with ExpertManager(cache_dir=cache, threads=1, trust="off") as manager:
        manager.load_expert("sql", golden("sql"), base=tool_base)
        yield manager


@pytest.fixture
def tooled(caller: ExpertManager) -> Iterator[TestClient]:
    """A client of it."""
    with TestClient(create_app(caller), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def say(caller: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the model say a text where it has a choice, and end."""
    generate_stream = ExpertManager.generate_stream

    def say(text: str) -> None:
        script = [*caller.tokenizer("sql").encode(text), 2]

        def saying(manager: ExpertManager, name: str, prompt: str | None = None, **options: Any) -> Any:
            shown = {key: options.get(key) for key in ("messages", "tools", "enable_thinking")}
            begin = len(manager.prompt_ids(name, prompt, **shown))  # type: ignore[arg-type]

            def process(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
                wanted = logits - 1000
                wanted[script[min(len(token_ids) - begin, len(script) - 1)]] = 1000
                return wanted

            return generate_stream(manager, name, prompt, **options, processors=[process])

        monkeypatch.setattr(ExpertManager, "generate_stream", saying)

    return say


@pytest.fixture(scope="module")
def tool_command(cache: Path, tool_base: Path) -> Iterator[Command]:
    """The same with the expert `sql` on a base whose template shows tools."""
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
