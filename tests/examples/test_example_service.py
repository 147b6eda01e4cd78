"""`examples/service`."""

from __future__ import annotations

import os

import pytest

for _needed in ("fastapi", "httpx"):
    pytest.importorskip(_needed, reason="needs the extra server")

from app import create_app
from example_packages import Examples
from fastapi.testclient import TestClient

from hivellm_ort import Expert
from hivellm_ort.serving.pool import BASES


def environment(examples: Examples, **more: str) -> dict[str, str]:
    """Variables that name both experts."""
    return {"HIVELLM_EXPERTS": f"sql={examples.sql}{os.pathsep}json={examples.json}", **more}


def test_the_api_is_mounted_beside_a_route(examples: Examples) -> None:
    """Both ask the same manager; when the application ends nothing stays in memory."""
    with TestClient(create_app(environment(examples)), base_url="http://localhost") as client:
        assert ["base", "sql", "json"] == [
            model["id"] for model in client.get("/ai/v1/models").json()["data"]
        ]
        body = {"model": "sql", "messages": [{"role": "user", "content": "a"}], "max_tokens": 8}
        answer = client.post("/ai/v1/chat/completions", json=body).json()
        title = client.get("/title", params={"text": "Fix this invalid JSON"}).json()
        assert 404 == client.get("/v1/models").status_code
        assert 1 == len(BASES.bases)
    assert [] == BASES.bases
    with Expert.load(examples.sql, trust="off") as expert:
        assert expert.generate("a", max_tokens=8).text == answer["choices"][0]["message"]["content"]
    with Expert.load(examples.json, trust="off") as expert:
        expected = expert.generate("Write a title for: Fix this invalid JSON", max_tokens=16).text
    assert {"title": expected, "expert": "json"} == title


def test_keys_hold_for_the_api_alone(examples: Examples) -> None:
    """The route is the application's to guard; health of the API is open."""
    app = create_app(environment(examples, HIVELLM_API_KEYS="secret"))
    with TestClient(app, base_url="http://localhost") as client:
        assert 401 == client.get("/ai/v1/models").status_code
        assert 200 == client.get("/ai/v1/models", headers={"authorization": "Bearer secret"}).status_code
        assert 200 == client.get("/ai/health").status_code
        assert 200 == client.get("/title", params={"text": "a"}).status_code


@pytest.mark.parametrize("experts", ["", "sql", "=a", "sql=", f"a=b{os.pathsep}a=c"])
def test_bad_environments_are_refused(experts: str) -> None:
    """None, a name or a path alone, and a name twice are errors that name the variable."""
    with pytest.raises(ValueError, match="HIVELLM_EXPERTS"):
        create_app({"HIVELLM_EXPERTS": experts})
