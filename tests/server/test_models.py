"""`/v1/models`, loading and unloading, and what tells of the server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_calls import chat, error_of
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from support.golden import BASE, golden, with_base

from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerOptions, create_app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package, beside a forbidden one."""
    folder = tmp_path / "allowed"
    folder.mkdir()
    with_base("dora", folder / "dora.expert")
    shutil.copy(golden("rslora"), tmp_path / "secret.expert")
    return folder


@pytest.fixture
def loading(cache: Path, folder: Path) -> Iterator[TestClient]:
    """A client that may load from the folder."""
    with ExpertManager(cache_dir=cache, threads=1, trust="off") as manager:
        manager.load_expert("sql", golden("sql"), base=BASE)
        options = ServerOptions(loading_folder=folder)
        with TestClient(create_app(manager, options), base_url="http://localhost") as client:
            yield client


def test_models(client: TestClient) -> None:
    """The base comes first; an expert's parent is the base, and its root the package."""
    document = client.get("/v1/models").json()
    assert "list" == document["object"]
    told = [(one["id"], one["root"], one["parent"], one["max_model_len"]) for one in document["data"]]
    assert [
        ("base", "tiny", None, 512),
        ("sql", "expert-sql@1.0.0", "base", 512),
        ("json", "expert-json@1.0.0", "base", 512),
    ] == told
    assert {("model", "hivellm")} == {(one["object"], one["owned_by"]) for one in document["data"]}
    assert {("CPUExecutionProvider", "fp32")} == {
        (one["provider"], one["precision"]) for one in document["data"]
    }
    assert document["data"][1] == client.get("/v1/models/sql").json()
    response = client.get("/v1/models/xml")
    assert (404, "model_not_found") == (response.status_code, error_of(response)["code"])


def test_an_expert_comes_and_goes(loading: TestClient) -> None:
    """A loaded expert answers at once, can be replaced where that is asked for, and is gone when it is unloaded."""
    body = {"lora_name": "dora", "lora_path": "dora.expert"}
    response = loading.post("/v1/load_lora_adapter", json=body)
    assert (200, "Success: LoRA adapter 'dora' added successfully.") == (response.status_code, response.text)
    answer = loading.post("/v1/chat/completions", json=chat(model="dora", max_tokens=2))
    assert (200, "dora") == (answer.status_code, answer.json()["model"])
    again = loading.post("/v1/load_lora_adapter", json=body)
    assert (400, "lora_name") == (again.status_code, error_of(again)["param"])
    assert 200 == loading.post("/v1/load_lora_adapter", json={**body, "load_inplace": True}).status_code
    assert 200 == loading.post("/v1/unload_lora_adapter", json={"lora_name": "dora"}).status_code
    assert ["base", "sql"] == [one["id"] for one in loading.get("/v1/models").json()["data"]]
    response = loading.post("/v1/unload_lora_adapter", json={"lora_name": "dora"})
    assert (404, "model_not_found") == (response.status_code, error_of(response)["code"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../secret.expert", 403),
        ("../nothing.expert", 403),
        ("{outside}", 403),
        ("{inside}/../../secret.expert", 403),
        ("link.expert", 403),
        ("/etc/passwd", 403),
        (".", 403),
        ("a\0b", 403),
        ("x" * 5000, 403),
        ("nothing.expert", 404),
        ("broken.expert", 400),
    ],
)
def test_nothing_outside_of_the_folder_is_loaded(
    path: str, status: int, folder: Path, loading: TestClient
) -> None:
    """Dots, absolute paths and links cannot leave the folder, and errors do not show which files exist."""
    (folder / "link.expert").symlink_to(folder.parent / "secret.expert")
    (folder / "broken.expert").write_bytes(b"none")
    written = path.replace("{outside}", str(folder.parent / "secret.expert")).replace("{inside}", str(folder))
    response = loading.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": written})
    error = error_of(response)
    assert (status, "lora_path") == (response.status_code, error["param"])
    assert str(folder.parent) not in error["message"]
    assert ["base", "sql"] == [one["id"] for one in loading.get("/v1/models").json()["data"]]


def test_thin_packages_are_loaded_on_the_base_of_the_operator(cache: Path, folder: Path) -> None:
    """A package without a base gets the one that the server was started with."""
    shutil.copy(golden("json"), folder / "json.expert")
    with ExpertManager(cache_dir=cache, threads=1, trust="off", base=BASE) as manager:
        options = ServerOptions(loading_folder=folder)
        with TestClient(create_app(manager, options), base_url="http://localhost") as client:
            body = {"lora_name": "json", "lora_path": "json.expert"}
            assert 200 == client.post("/v1/load_lora_adapter", json=body).status_code
            assert (
                200 == client.post("/v1/chat/completions", json=chat(model="json", max_tokens=1)).status_code
            )


@pytest.mark.parametrize("name", ["base", "auto", "a\nb", "", "x" * 129])
def test_names_that_no_expert_can_have(name: str, loading: TestClient) -> None:
    """Names that mean something else, or that no header can hold, are refused."""
    body = {"lora_name": name, "lora_path": "dora.expert"}
    response = loading.post("/v1/load_lora_adapter", json=body)
    assert (400, "lora_name") == (response.status_code, error_of(response)["param"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "x"}),
        ("/v1/unload_lora_adapter", {"lora_name": "sql"}),
    ],
)
def test_loading_is_off_by_default(path: str, body: dict[str, Any], client: TestClient) -> None:
    """Without a folder nothing is loaded or unloaded."""
    response = client.post(path, json=body)
    assert (403, "loading_is_off") == (response.status_code, error_of(response)["code"])


def test_health_and_readiness(manager: ExpertManager) -> None:
    """`/health` is of the process, `/ready` of the experts: none, or the end, is not ready."""
    app = create_app(manager)
    with TestClient(app, base_url="http://localhost") as client:
        assert (200, {"status": "ok"}) == _answer(client, "/health")
        assert (200, {"status": "ready"}) == _answer(client, "/ready")
        app.state.server.drain()
        assert (503, {"status": "shutting down"}) == _answer(client, "/ready")
        assert (200, {"status": "ok"}) == _answer(client, "/health")
        response = client.post("/v1/chat/completions", json=chat())
    assert (503, "shutting_down") == (response.status_code, error_of(response)["code"])
    assert "1" == response.headers["retry-after"]
    with ExpertManager() as empty, TestClient(create_app(empty), base_url="http://localhost") as client:
        assert (503, {"status": "no experts"}) == _answer(client, "/ready")


def _answer(client: TestClient, path: str) -> tuple[int, Any]:
    response = client.get(path)
    return response.status_code, response.json()


def test_metrics(manager: ExpertManager) -> None:
    """Prometheus reads the manager's counts and those of HTTP, by route and never by path."""
    with TestClient(create_app(manager), base_url="http://localhost") as client:
        client.post("/v1/chat/completions", json=chat(max_tokens=2))
        client.post("/v1/chat/completions", json=chat(model="xml"))
        client.get("/v1/models/sql")
        client.get("/secret/path")
        client.request("BREW", "/health")
        response = client.get("/metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == response.headers["content-type"]
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert {"hivellm_ort_requests", "hivellm_ort_http_requests", "hivellm_ort_http_request_seconds"} <= set(
        families
    )
    counts = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["hivellm_ort_http_requests"].samples
    }
    assert {
        ("POST", "/v1/chat/completions", "200"): 1,
        ("POST", "/v1/chat/completions", "404"): 1,
        ("GET", "/v1/models/{model:path}", "200"): 1,
        ("GET", "none", "404"): 1,
        ("other", "/health", "405"): 1,
    } == counts
    assert 1 == families["hivellm_ort_http_requests_in_progress"].samples[0].value
    stats = manager.stats()
    memory = {one.labels["part"]: one.value for one in families["hivellm_ort_memory_bytes"].samples}
    assert (stats["bytes"], stats["adapter_bytes"]) == (sum(memory.values()), memory["adapters"])
    rows = sum(base["rows"] for base in stats["bases"])
    assert rows == families["hivellm_ort_batch_rows_limit"].samples[0].value


def test_the_description(client: TestClient) -> None:
    """`/openapi.json` has every route with its fields, and what an error looks like."""
    document = client.get("/openapi.json").json()
    assert {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter", "/tokenize", "/detokenize", "/health", "/ready", "/metrics",
    } <= set(document["paths"])  # fmt: skip
    chat_body = document["components"]["schemas"]["ChatBody"]
    assert ["model", "messages"] == chat_body["required"]
    assert {"schema", "temperature", "response_format"} <= set(chat_body["properties"])
    assert chat_body["additionalProperties"] is False
    contents = {
        path: (list(responses["200"]["content"]), "422" in responses, "429" in responses)
        for path in ("/v1/chat/completions", "/v1/load_lora_adapter", "/metrics", "/tokenize")
        for operation in document["paths"][path].values()
        for responses in [operation["responses"]]
    }
    assert {
        "/v1/chat/completions": (["application/json", "text/event-stream"], False, True),
        "/v1/load_lora_adapter": (["text/plain"], False, True),
        "/metrics": (["text/plain"], False, True),
        "/tokenize": (["application/json"], False, True),
    } == contents
    assert [] == re.findall(r"/(root|home|tmp)/\w+", str(document))
