"""Clients that go away, that are slow, that are too many, and answers that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx
import pytest
from api_calls import QUESTION, chat, chunks, error_of, events_of
from fastapi import FastAPI, Request

from hivellm_ort import ExpertManager, OutOfMemoryError
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.server import ServerLimits, ServerOptions, create_app, streaming
from hivellm_ort.server.generation import RunningAnswers, cancel_on_disconnect
from hivellm_ort.serving.stream import AsyncTextStream

LONG = {"max_tokens": 400, "prompt_lookup": False}
RESPONSE = {"model": "sql", "input": QUESTION, "max_output_tokens": 400, "prompt_lookup": False}


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a while, or a busy machine makes all of an answer before its client is gone."""
    append, step = Decoder.append, Decoder.step

    def slow_append(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return append(*arguments, **options)

    def slow_step(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return step(*arguments, **options)

    monkeypatch.setattr(Decoder, "append", slow_append)
    monkeypatch.setattr(Decoder, "step", slow_step)


def limited(manager: ExpertManager, **limits: Any) -> FastAPI:
    """The application with other limits."""
    return create_app(manager, ServerOptions(limits=ServerLimits(**limits)))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client in the same event loop."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)


def scope_of(path: str, spec_version: str = "2.3") -> dict[str, Any]:
    """What an ASGI server tells of a POST of JSON."""
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": spec_version}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
    }  # fmt: skip


def at_rest(app: FastAPI, manager: ExpertManager) -> None:
    """All rows and all places in the queue are free."""
    end = time.monotonic() + 10
    state = app.state.server
    # A cancelled task releases its place in a later step of the event loop.
    while any(base["active"] + base["queued"] for base in manager.stats()["bases"]) or state._reserved:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (0, set()) == (state._reserved, state._running)


def cancelled(manager: ExpertManager) -> int:
    """How many answers were cancelled so far."""
    requests = manager.metrics.snapshot()["requests_total"]
    return sum(reasons.get("cancelled", 0) for reasons in requests.values())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_client_that_goes_away_ends_its_answers(
    path: str, stream: bool, spec_version: str, manager: ExpertManager
) -> None:
    """All its rows are free soon after, whether the server tells by a message or by an error of `send`."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat(**LONG, n=3),
        "/v1/completions": {"model": "sql", "prompt": "a", **LONG, "n": 3},
        "/v1/responses": RESPONSE,
    }
    body = json.dumps({**bodies[path], "stream": stream}).encode()
    answers = bodies[path].get("n", 1)
    app = create_app(manager)

    async def leave() -> None:
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

        async def go_when_all_are_written() -> None:
            while sum(base["active"] for base in manager.stats()["bases"]) < answers:
                await asyncio.sleep(0.01)
            gone.set()

        going = asyncio.create_task(go_when_all_are_written()) if not stream else None
        with contextlib.suppress(OSError):  # the server's own
            await app(scope_of(path, spec_version), receive, send)
        if going is not None:
            await going
        await asyncio.to_thread(at_rest, app, manager)

    before = cancelled(manager)
    asyncio.run(leave())
    assert answers == cancelled(manager) - before
    if not stream:
        assert f'route="{path}",status="499"}} 1' in app.state.server.metrics.prometheus()


def test_a_client_that_goes_away_while_it_waits(manager: ExpertManager) -> None:
    """An answer that had no row yet never gets one, and the others go on."""
    app = limited(manager, max_n=20, max_waiting=50)

    async def run() -> httpx.Response:
        async with client_of(app) as client:
            first = asyncio.create_task(client.post("/v1/chat/completions", json=chat(n=8, max_tokens=150)))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(client.post("/v1/chat/completions", json=chat(**LONG, n=20)))
            while not first.done() and sum(base["queued"] for base in manager.stats()["bases"]) < 20:
                await asyncio.sleep(0.01)
            second.cancel()
            return await first

    before = cancelled(manager)
    response = asyncio.run(run())
    expected = manager.generate("sql", QUESTION, max_tokens=150).text
    assert [expected] * 8 == [choice["message"]["content"] for choice in response.json()["choices"]]
    at_rest(app, manager)
    assert 20 == cancelled(manager) - before


@pytest.mark.parametrize("stream", [False, True])
def test_too_many_wait(stream: bool, manager: ExpertManager) -> None:
    """Requests above the limit get status 429 with Retry-After. Earlier requests are answered."""
    app = limited(manager, max_waiting=4)

    async def run() -> list[httpx.Response]:
        async with client_of(app) as client:
            running = []
            for n in (8, 3, 1):  # as many as have a row, and as many as may wait
                body = chat(n=n, max_tokens=30)
                running.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
                await asyncio.sleep(0.1)
            late = await client.post("/v1/chat/completions", json=chat(max_tokens=5, stream=stream))
            return [*(await asyncio.gather(*running)), late]

    *answered, late = asyncio.run(run())
    assert {200} == {response.status_code for response in answered}
    assert (429, "rate_limit_error", "queue_full") == (
        late.status_code,
        error_of(late)["type"],
        error_of(late)["code"],
    )
    assert "1" == late.headers["retry-after"]
    assert "hivellm_ort_http_queue_full_total 1\n" in app.state.server.metrics.prometheus()
    at_rest(app, manager)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream: bool, manager: ExpertManager) -> None:
    """The client gets a timeout error that forbids retries, and the row is free."""
    app = limited(manager, request_timeout=0.3)

    async def run() -> httpx.Response:
        async with client_of(app) as client:
            return await client.post("/v1/chat/completions", json=chat(**LONG, stream=stream))

    response = asyncio.run(run())
    if stream:
        *found, last = chunks(response.text)
        assert len(found) > 1
        error = last["error"]
    else:
        error = error_of(response)
        assert (504, "false") == (response.status_code, response.headers["x-should-retry"])
    assert ("server_error", "timeout") == (error["type"], error["code"])
    assert "0.3 s" in error["message"]
    at_rest(app, manager)


@pytest.mark.parametrize("ending", [False, True])
def test_a_response_that_is_ended(ending: bool, manager: ExpertManager) -> None:
    """Its last event says why: the time is over, or the server shuts down. At once it is an error object."""
    app = limited(manager, request_timeout=30 if ending else 0.3)

    async def run(stream: bool) -> httpx.Response:
        async with client_of(app) as client:
            task = asyncio.create_task(client.post("/v1/responses", json={**RESPONSE, "stream": stream}))
            if ending:
                await asyncio.sleep(0.3)
                app.state.server.stop()
            return await task

    *_, last = events_of(asyncio.run(run(stream=True)).text)
    assert ("response.failed", "server_error") == (last["type"], last["response"]["error"]["code"])
    assert ("is shutting down" if ending else "0.3 s") in last["response"]["error"]["message"]
    response = asyncio.run(run(stream=False))
    expected = (503, "shutting_down") if ending else (504, "timeout")
    assert expected == (response.status_code, error_of(response)["code"])
    at_rest(app, manager)


def test_an_error_in_a_stream(manager: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after the first chunk is an error object in the stream, and the stream ends as it has to."""
    read = AsyncTextStream.next_step
    count = 0

    async def fail_fifth(stream: AsyncTextStream) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise OutOfMemoryError("no room")
        return await read(stream)

    monkeypatch.setattr(AsyncTextStream, "next_step", fail_fifth)
    app = create_app(manager)

    async def run() -> httpx.Response:
        async with client_of(app) as client:
            return await client.post("/v1/chat/completions", json=chat(max_tokens=20, stream=True))

    *found, last = chunks(asyncio.run(run()).text)
    assert len(found) > 0
    assert {
        "error": {"message": "no room", "type": "server_error", "param": None, "code": "out_of_memory"}
    } == last


def test_a_stream_that_waits_says_so(manager: ExpertManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle stream sends comments, which clients ignore."""
    monkeypatch.setattr("hivellm_ort.server.chat_formatter.IDLE_SECONDS", 0.002)
    monkeypatch.setattr("hivellm_ort.server.responses.IDLE_SECONDS", 0.002)
    app = create_app(manager)

    async def run(path: str, body: dict[str, Any]) -> str:
        async with client_of(app) as client:
            return (await client.post(path, json={**body, "stream": True})).text

    text = asyncio.run(run("/v1/chat/completions", chat(max_tokens=5)))
    assert text.count(": waiting\n\n") > 1
    assert "length" == chunks(text)[-1]["choices"][0]["finish_reason"]
    text = asyncio.run(run("/v1/responses", {**RESPONSE, "max_output_tokens": 5}))
    assert text.count(": waiting\n\n") > 1
    assert "response.incomplete" == events_of(text.replace(": waiting\n\n", ""))[-1]["type"]
    assert streaming.IDLE_SECONDS == 15


def test_a_body_that_does_not_arrive(manager: ExpertManager) -> None:
    """A client that stops in the middle of its body gets an error after the body timeout."""
    app = limited(manager, body_timeout=0.2)

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        first = True

        async def receive() -> dict[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b'{"model": ', "more_body": True}
            await asyncio.sleep(10)
            raise AssertionError("nobody waits so long")

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope_of("/v1/chat/completions"), receive, send)
        return sent

    start, *_ = asyncio.run(run())
    assert (408, True) == (start["status"], (b"connection", b"close") in start["headers"])


def test_a_client_that_does_not_read(manager: ExpertManager, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that the client does not read is cancelled after the send timeout, and its row is free."""
    app = limited(manager, send_timeout=0.2)
    body = json.dumps(chat(**LONG, stream=True)).encode()

    async def run() -> None:
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.sleep(30)
            raise AssertionError("nobody waits so long")

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(30)

        await app(scope_of("/v1/chat/completions"), receive, send)
        await asyncio.to_thread(at_rest, app, manager)

    before = cancelled(manager)
    asyncio.run(run())
    assert 1 == cancelled(manager) - before
    assert "a client did not read for 0.2 s" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_the_server(stream: bool, manager: ExpertManager) -> None:
    """Answers that still run after the drain time are cancelled, and their clients get `shutting_down`."""
    app = create_app(manager)

    async def run() -> httpx.Response:
        async with client_of(app) as client:
            task = asyncio.create_task(client.post("/v1/chat/completions", json=chat(**LONG, stream=stream)))
            await asyncio.sleep(0.3)
            app.state.server.drain()
            await asyncio.sleep(0.1)
            assert not task.done()
            app.state.server.stop()
            return await task

    response = asyncio.run(run())
    if stream:
        error = chunks(response.text)[-1]["error"]
    else:
        error = error_of(response)
        assert (503, "1") == (response.status_code, response.headers["retry-after"])
    assert "shutting_down" == error["code"]
    at_rest(app, manager)


def test_a_request_that_is_cancelled_as_its_answer_begins(manager: ExpertManager) -> None:
    """An answer that starts while its request is cancelled is cancelled too."""
    app = limited(manager)

    async def never() -> Any:
        await asyncio.sleep(60)

    async def run() -> None:
        request = Request(scope_of("/"), never)
        answers = await RunningAnswers.start(
            app.state.server, "sql", [{"messages": [{"role": "user", "content": "a"}]}]
        )

        async def begun() -> RunningAnswers:
            return answers

        waiting = asyncio.create_task(cancel_on_disconnect(request, begun()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.gather(*answers._tasks, return_exceptions=True)

    asyncio.run(run())
    at_rest(app, manager)
