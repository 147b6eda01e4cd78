"""`examples/service`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs fastapi")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from app import create_app
from example_packages import Examples
from fastapi import FastAPI
from settings import Settings
from starlette.requests import ClientDisconnect

from hivellm_ort import Expert, ExpertManager, LoadError, OutOfMemoryError
from hivellm_ort.engine.decoder import Decoder

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class Client:
    """A running service and what asks it: between the requests its event loop stands still.

    Args:
        app: the service.
    """

    def __init__(self, app: FastAPI):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://service")
        self._lifespan = app.router.lifespan_context(app)
        self._runner = asyncio.Runner()

    def get(self, path: str) -> httpx.Response:
        """GET."""
        return self._runner.run(self._client.get(path))

    def post(self, path: str, body: Any) -> httpx.Response:
        """POST of a JSON body."""
        return self._runner.run(self._client.post(path, json=body))

    def __enter__(self) -> Client:
        self._runner.run(self._lifespan.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._lifespan.__aexit__(*error))
        self._runner.run(self._client.aclose())
        self._runner.close()


def configured(examples: Examples, **options: Any) -> Settings:
    """Settings with both experts."""
    return Settings({"sql": examples.sql, "json": examples.json}, threads=1, trust="off", **options)


@pytest.fixture
def client(examples: Examples) -> Iterator[Client]:
    """A client of a running service."""
    with Client(create_app(configured(examples))) as client:
        yield client


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The name and the data of every event of a stream."""
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, _, data = event.rpartition("data: ")
        found.append((name.removeprefix("event: ").strip(), json.loads(data)))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_generate_by_name(client: Client, examples: Examples) -> None:
    """The answer is that of the expert, with all options that were given."""
    body = {"expert": "sql", "prompt": "a", "schema": "b", "max_tokens": 20, "temperature": 1.5, "seed": 3}
    answer = client.post("/generate", body).json()
    with Expert.load(examples.sql, trust="off") as expert:
        expected = expert.generate("a", schema="b", max_tokens=20, temperature=1.5, seed=3)
    assert (expected.text, "expert-sql", "length", 20) == (
        answer["text"], answer["expert"], answer["finish_reason"], answer["completion_tokens"],
    )  # fmt: skip


def test_generate_routed_from_messages(client: Client) -> None:
    """Without a name the last question decides who answers; `or_base` asks the base where nobody fits."""
    turns = [{"role": "user", "content": "Fix this invalid JSON"}]
    assert "expert-json" == client.post("/generate", {"messages": turns, "max_tokens": 2}).json()["expert"]
    body = {"prompt": "hello", "or_base": True, "max_tokens": 2}
    assert "tiny" == client.post("/generate", body).json()["expert"]


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ({"json_schema": SCHEMA}, {'{"ok": true}', '{"ok": false}'}),
        ({"choice": ["yes", "no"]}, {"yes", "no"}),
        ({"regex": "[ab]"}, {"a", "b"}),
        ({"grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
    ],
)
def test_grammars_hold(option: dict[str, Any], allowed: set[str], client: Client) -> None:
    """Each kind of grammar decides what an answer may be."""
    answer = client.post("/generate", {"expert": "json", "prompt": "a", **option}).json()
    assert answer["grammar_complete"] is True
    assert answer["text"] in allowed


def test_stream_gives_the_same_text(client: Client) -> None:
    """The pieces together are the answer, and the last event holds the result."""
    body = {"expert": "sql", "prompt": "a", "max_tokens": 20}
    expected = client.post("/generate", body).json()
    response = client.post("/stream", body)
    assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
    *pieces, (name, result) = events(response.text)
    assert len(pieces) > 1
    assert {""} == {name for name, _ in pieces}
    assert expected["text"] == "".join(data["text"] for _, data in pieces)
    assert ("done", expected["text"], "length") == (name, result["text"], result["finish_reason"])


@pytest.mark.parametrize("path", ["/generate", "/stream"])
@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        ({"expert": "xml", "prompt": "a"}, 404, "UnknownExpertError", "loaded are: 'sql', 'json'"),
        ({"prompt": "hello"}, 404, "UnknownExpertError", "no expert fits"),
        ({"expert": "sql", "prompt": "a " * 3000}, 422, "ContextLengthError", "exceed the model's context"),
        ({"expert": "sql", "prompt": "a", "top_p": 2}, 422, "OptionError", "top_p is 2.0"),
        ({"expert": "sql", "prompt": "a", "grammar": "root ::= ("}, 422, "GrammarError", "line 1"),
        ({"expert": "sql", "prompt": "a", "grammar": True}, 422, "GrammarError", "has none"),
        ({"expert": "sql"}, 422, "RequestValidationError", "give a prompt"),
        ({"prompt": "a", "processors": []}, 422, "RequestValidationError", "processors: Extra inputs"),
        ([], 422, "RequestValidationError", "body: "),
    ],
)
def test_errors_are_json(path: str, body: Any, status: int, kind: str, message: str, client: Client) -> None:
    """What is wrong with a request has a status code, a type and a message, also before a stream."""
    response = client.post(path, body)
    error = response.json()["error"]
    assert (status, kind) == (response.status_code, error["type"])
    assert message in error["message"]


@pytest.mark.parametrize(("kind", "status"), [(OutOfMemoryError, 503), (LoadError, 503), (RuntimeError, 500)])
def test_errors_of_the_service(
    kind: type[Exception], status: int, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory, and a package that is gone, are the service's trouble and not the client's."""

    async def fail(*_: Any, **__: Any) -> None:
        raise kind("trouble")

    monkeypatch.setattr(ExpertManager, "agenerate", fail)
    with Client(create_app(configured(examples))) as client:
        response = client.post("/generate", {"prompt": "sql"})
    name, message = (kind.__name__, "trouble") if status == 503 else ("InternalServerError", "see the log")
    assert (status, {"error": {"type": name, "message": message}}) == (response.status_code, response.json())


def test_an_error_in_a_stream_is_an_event(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after the first piece is told as the event `error`."""
    from hivellm_ort.serving.stream import AsyncTextStream

    read = AsyncTextStream.__anext__
    count = 0

    async def fail_third(stream: AsyncTextStream) -> str:
        nonlocal count
        count += 1
        if count == 3:
            raise OutOfMemoryError("no room")
        return await read(stream)

    monkeypatch.setattr(AsyncTextStream, "__anext__", fail_third)
    found = events(client.post("/stream", {"expert": "sql", "prompt": "a", "max_tokens": 20}).text)
    assert ["", "", "error"] == [name for name, _ in found]
    assert {"type": "OutOfMemoryError", "message": "no room"} == found[-1][1]["error"]


@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])
def test_a_client_that_goes_away_ends_the_generation(
    spec_version: str, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is free soon after, whether the server tells by a message or by an error of `send`."""
    append = Decoder.append

    def slow(
        *arguments: Any, **options: Any
    ) -> Any:  # or a busy machine makes all of it before the client is gone
        time.sleep(0.02)
        return append(*arguments, **options)

    monkeypatch.setattr(Decoder, "append", slow)
    app = create_app(configured(examples))
    body = json.dumps({"expert": "sql", "prompt": "a", "max_tokens": 400}).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": spec_version}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": "/stream", "raw_path": b"/stream", "query_string": b"",
        "root_path": "", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def leave() -> dict[str, Any]:
        gone = asyncio.Event()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if gone.is_set() and spec_version == "2.4":
                raise OSError("the client is gone")
            if message.get("body"):
                gone.set()

        async with app.router.lifespan_context(app):
            manager: ExpertManager = app.state.manager
            with contextlib.suppress(ClientDisconnect):
                await app(scope, receive, send)
            await asyncio.to_thread(wait_for, lambda: not manager.metrics.snapshot()["active_requests"])
            return manager.metrics.snapshot()

    assert {"sql": {"cancelled": 1}} == asyncio.run(leave())["requests_total"]


def test_experts_metrics_and_health(client: Client) -> None:
    """The service tells what it holds and what it did."""
    client.post("/generate", {"expert": "sql", "prompt": "a", "max_tokens": 2})
    listed = {info["name"]: info for info in client.get("/experts").json()}
    assert ["sql", "json"] == list(listed)
    sql = listed["sql"]
    assert ("lora", 4, "unsigned", 1) == (sql["kind"], sql["rank"], sql["verdict"], sql["hits"])
    response = client.get("/metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == response.headers["content-type"]
    assert 'hivellm_ort_requests_total{expert="sql",finish_reason="length"} 1\n' in response.text
    health = client.get("/health").json()
    assert ("ok", 2) == (health["status"], health["loaded_experts"])


def test_the_end_closes_the_manager(examples: Examples) -> None:
    """When the service stops nothing stays in memory."""
    from hivellm_ort.serving.pool import BASES

    app = create_app(configured(examples))
    with Client(app):
        assert 1 == len(BASES.bases)
    assert [] == BASES.bases


def test_settings_of_the_environment(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HIVELLM_EXPERTS` names experts as `PATH` names folders."""
    monkeypatch.setenv("HIVELLM_EXPERTS", f"sql={examples.sql}{os.pathsep}json={examples.json}")
    assert Settings({"sql": examples.sql, "json": examples.json}) == Settings.from_environment(os.environ)
    with Client(create_app()) as client:
        assert 2 == client.get("/health").json()["experts"]


def test_settings_of_a_file(tmp_path: Path) -> None:
    """Paths are relative to the file, and it goes before `HIVELLM_EXPERTS`."""
    file = tmp_path / "service.toml"
    file.write_text('base = "b"\nthreads = 2\n[experts]\nsql = "out/sql.expert"\n', encoding="utf-8")
    expected = Settings({"sql": tmp_path / "out/sql.expert"}, base=tmp_path / "b", threads=2)
    environment = {"HIVELLM_SERVICE": str(file), "HIVELLM_EXPERTS": "no"}
    assert expected == Settings.from_environment(environment)


@pytest.mark.parametrize("experts", ["", "sql", "=a", "sql=", f"a=b{os.pathsep}a=c"])
def test_bad_environments_are_refused(experts: str) -> None:
    """None, a name or a path alone, and a name twice are errors that name the variable."""
    with pytest.raises(ValueError, match="HIVELLM_EXPERTS"):
        Settings.from_environment({"HIVELLM_EXPERTS": experts})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[experts", "Expected .]. at the end of a table"),
        ("port = 1", "unknown field 'port'"),
        ('threads = "2"', "threads must be an integer, not '2'"),
        ("threads = 2", r"\[experts\] must name packages"),
        ("[experts]\nsql = 1", r"\[experts\] must name packages"),
    ],
)
def test_bad_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """The error names the file and what is wrong in it."""
    file = tmp_path / "service.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Settings.from_toml(file)
    assert str(caught.value).startswith(str(file))
