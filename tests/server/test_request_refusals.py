"""Wrong requests get a status and an error object that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_calls import chat, error_of
from fastapi.testclient import TestClient
from support.golden import BASE, golden

from hivellm_ort import ExpertManager, InferenceError, LoadError, OutOfMemoryError
from hivellm_ort.server import ServerLimits, ServerOptions, create_app
from hivellm_ort.server.schemas.chat import ChatBody
from hivellm_ort.server.schemas.common import REFUSED
from hivellm_ort.server.schemas.completions import CompletionBody
from hivellm_ort.server.schemas.decisions import DecisionsBody
from hivellm_ort.server.schemas.responses import ResponsesBody

SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
DEEP: Any = {}
for _ in range(40):
    DEEP = {"not": DEEP}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fields_that_have_no_meaning_here(name: str, client: TestClient) -> None:
    """An unsupported field of OpenAI or vLLM is refused by name with an alternative. Null is accepted."""
    error = error_of(client.post("/v1/chat/completions", json=chat(**{name: 1})))
    assert ("unsupported_parameter", name) == (error["code"], error["param"])
    assert f"{name} is not supported: {REFUSED[name]}" == error["message"]
    response = client.post("/v1/chat/completions", json=chat(**{name: None}, max_tokens=1))
    assert 200 == response.status_code


def test_no_field_is_both_taken_and_refused() -> None:
    """No supported field is in the list of refused fields."""
    bodies = (ChatBody, CompletionBody, ResponsesBody, DecisionsBody)
    taken = {name for body in bodies for name in body.model_fields}
    assert set() == set(REFUSED) & taken


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"top_pp": 1}, "top_pp", "not a field of this request; did you mean top_p?"),
        ({"zzz": None}, "zzz", "not a field of this request: leave it out"),
        ({"model": None}, "model", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"response_format": 5}, "response_format", "input should be an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'system', 'developer'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user", "content": "x", "cache": 1}]}, "messages[0].cache", "not a field"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "content must be a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages",
            "only parts of type 'text'",
        ),
        ({"messages": [{"role": "user", "content": "x", "audio": {"id": "x"}}]}, "messages[0].audio", "null"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "0 (greedy) or a number"),
        ({"top_p": 2}, "top_p", "0 to 1"),
        ({"top_k": -1}, "top_k", "0 (off) or a positive integer"),
        ({"min_p": 7}, "min_p", "0 to 1"),
        ({"presence_penalty": 3}, "presence_penalty", "-2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "a number from"),
        ({"seed": -1}, "seed", "an integer from 0"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"n": 0}, "n", "from 1 to 8"),
        ({"n": 10**6}, "n", "from 1 to 8"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to 4096"),
        ({"max_tokens": 5000}, "max_tokens", "from 1 to 4096"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "from 1 to 4096"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "another value"),
        ({"max_tokens": 4000}, None, "exceed the model's context of 512 tokens"),
        ({"stop": ["x"] * 17}, "stop", "17 texts; at most 16 are allowed"),
        ({"stop": [1]}, "stop[0]", "valid string"),
        ({"stop": [""]}, "stop", "stop string 0 has 0 characters"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias: 'x' is not a token id"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "names token 999999"),
        ({"logit_bias": {str(index): 1 for index in range(1025)}}, "logit_bias", "at most 1024 are allowed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "equal to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "the type is 'text'",
        ),
        ({"response_format": SCHEMA, "regex": "a"}, "response_format", "regex constrains the answer"),
        ({"regex": "a", "choice": ["a"]}, "choice", "regex and choice are given"),
        ({"grammar": "root ::= ("}, "grammar", "line 1"),
        ({"grammar": True}, None, "has none in its package"),
        ({"grammar": 5}, "grammar", "valid string or input should be a valid boolean"),
        ({"regex": "("}, "regex", "unclosed group"),
        ({"choice": []}, "choice", "choice is empty"),
        ({"json_schema": {"type": "nothing"}}, None, "nothing"),
        ({"json_schema": DEEP}, "json_schema", "more than 32 levels"),
        ({"regex": "a" * 70_000}, "regex", "70000 bytes; at most 65536 are allowed"),
        ({"schema": {"type": "object"}}, "schema", "valid string"),
        ({"store": True}, "store", "False"),
        ({"modalities": ["audio"]}, "modalities[0]", "'text'"),
        ({"service_tier": "flex"}, "service_tier", "'auto' or 'default'"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "'none'"),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            "reasoning_effort",
            "contradicts it",
        ),
        ({"chat_template_kwargs": {"foo": 1}}, "chat_template_kwargs.foo", "not a field"),
        ({"schema": "x", "messages": [{"role": "system", "content": "x"}]}, None, "two system messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_are_wrong(
    fields: dict[str, Any], param: str | None, message: str, stream: bool, client: TestClient
) -> None:
    """The status is 400 and the error names the field, also where a stream was asked for."""
    response = client.post("/v1/chat/completions", json={**chat(stream=stream), **fields})
    error = error_of(response)
    assert (400, "invalid_request_error", param) == (response.status_code, error["type"], error["param"])
    assert message in error["message"]


def test_stream_options_without_a_stream(client: TestClient) -> None:
    """`stream_options` without a stream is refused."""
    error = error_of(client.post("/v1/chat/completions", json=chat(stream_options={"include_usage": True})))
    assert ("stream_options", True) == (error["param"], "it needs stream" in error["message"])


def test_an_unknown_model(client: TestClient) -> None:
    """The error names the models that there are."""
    response = client.post("/v1/chat/completions", json=chat(model="xml"))
    error = error_of(response)
    assert (404, "model_not_found", "model") == (response.status_code, error["code"], error["param"])
    assert "loaded are: 'sql', 'json'" in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (b"", 400, "missing_body", "there is no body"),
        (b"{", 400, "invalid_json", "the body:1:"),
        (b"[]", 400, "invalid_json", "holds a list"),
        (b"\xff\xfe", 400, "invalid_json", "the body:1:"),
        (b'{"model": "a", "model": "b"}', 400, "invalid_json", "the key 'model' comes twice"),
        (b'{"seed": NaN}', 400, "invalid_json", "NaN"),
        (b'{"seed": 1e999}', 400, "invalid_json", "out of range"),
        (b'{"model": "\\ud800"}', 400, "invalid_json", "surrogate"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "invalid_json", "inside each other"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', 413, "body_too_large", "4194304 bytes"),
    ],
)
def test_bodies_that_cannot_be_read(
    body: bytes, status: int, code: str, message: str, client: TestClient
) -> None:
    """The error says where in the body the fault is."""
    headers = {"content-type": "application/json"}
    response = client.post("/v1/chat/completions", content=body, headers=headers)
    error = error_of(response)
    assert (status, code) == (response.status_code, error["code"])
    assert message in error["message"]


def test_large_bodies_are_read(client: TestClient) -> None:
    """A body near the limit is read as any other, and its faults are found too."""
    body = chat(max_tokens=1, metadata={"a": "x" * 3_000_000})
    assert 200 == client.post("/v1/chat/completions", json=body).status_code
    headers = {"content-type": "application/json"}
    content = b'{"metadata": {"a": "' + b"x" * 3_000_000 + b'"}, "metadata": {}}'
    response = client.post("/v1/chat/completions", content=content, headers=headers)
    assert "comes twice" in error_of(response)["message"]


def test_a_chunked_body_is_bounded(client: TestClient) -> None:
    """A body without a length is counted as it arrives."""
    headers = {"content-type": "application/json"}
    parts = (b"x" * 65536 for _ in range(100))
    response = client.post("/v1/chat/completions", content=parts, headers=headers)
    assert (413, "body_too_large") == (response.status_code, error_of(response)["code"])


def test_a_body_of_another_type(client: TestClient) -> None:
    """Pages of other sites can send text without a CORS preflight, so a text body is refused."""
    response = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (415, "invalid_content_type") == (response.status_code, error_of(response)["code"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/v1/chat/completions", 405, "method_not_allowed")],
)
def test_routes_that_are_not_there(
    method: str, path: str, status: int, code: str, client: TestClient
) -> None:
    """A wrong path or method is an error object too."""
    response = client.request(method, path)
    assert (status, code) == (response.status_code, error_of(response)["code"])


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (OutOfMemoryError("no room"), 503, "out_of_memory", "no room"),
        (
            LoadError("/secret/x.expert is gone"),
            503,
            "model_unavailable",
            "the expert is unavailable: see the log",
        ),
        (InferenceError("a tokenizer fails"), 400, "cannot_answer", "a tokenizer fails"),
        (RuntimeError("/secret/bug"), 500, "internal_error", "the server failed: see its log"),
    ],
)
def test_errors_of_the_server(
    error: Exception, status: int, code: str, message: str, manager: ExpertManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Errors of the server have a status from 500 on, and a bug has no details."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ExpertManager, "generate_stream", fail)
    app = create_app(manager)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        response = client.post("/v1/chat/completions", json=chat())
    assert (status, code) == (response.status_code, error_of(response)["code"])
    assert message == error_of(response)["message"].partition(" of the server")[0]
    assert response.headers["x-request-id"].startswith("req-")
    counted = f'route="/v1/chat/completions",status="{status}"}} 1'
    assert counted in app.state.server.metrics.prometheus()


def test_several_bases_have_no_base(cache: Path) -> None:
    """`base` is refused if the experts have several bases."""
    with ExpertManager(cache_dir=cache, threads=1, trust="off") as manager:
        manager.load_expert("sql", golden("sql"), base=BASE)
        manager.load_expert("short", golden("short"))
        with TestClient(create_app(manager), base_url="http://localhost") as client:
            response = client.post("/v1/chat/completions", json=chat(model="base"))
            models = client.get("/v1/models").json()["data"]
    assert (400, "model") == (response.status_code, error_of(response)["param"])
    assert ["sql", "short"] == [model["id"] for model in models]


def test_limits_of_the_operator(manager: ExpertManager) -> None:
    """Each limit is the operator's to set, and the error has its number."""
    limits = ServerLimits(max_n=2, max_tokens=10, max_stops=1, max_body_bytes=500)
    with TestClient(create_app(manager, ServerOptions(limits=limits)), base_url="http://localhost") as client:
        for fields, message in (
            ({"n": 3}, "from 1 to 2"),
            ({"max_tokens": 11}, "from 1 to 10"),
            ({"stop": ["a", "b"]}, "at most 1 are allowed"),
            ({"user": "x" * 600}, "500 bytes"),
        ):
            assert message in error_of(client.post("/v1/chat/completions", json=chat(**fields)))["message"]


_NUMBERS = [
    "n", "seed", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "top_k", "min_p",
    "typical_p", "repetition_penalty", "no_repeat_ngram_size", "min_tokens", "top_logprobs",
    "max_completion_tokens",
]  # fmt: skip


@pytest.mark.parametrize("value", [10**30, -(10**30), 2**63, 2**32, -1])
@pytest.mark.parametrize("field", _NUMBERS)
def test_numbers_of_any_size(field: str, value: int, client: TestClient) -> None:
    """No number makes the server fail."""
    most = {} if field == "max_completion_tokens" else {"max_tokens": 2}
    body: dict[str, Any] = {**most, "temperature": 1, "logprobs": True, field: value}
    response = client.post("/v1/chat/completions", json=chat(**body))
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert field == error_of(response)["param"]
