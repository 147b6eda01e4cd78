"""Who may ask: keys, names of the server, web pages of other sites."""

from __future__ import annotations

import pytest
from api_calls import chat, error_of
from fastapi.testclient import TestClient

from hivellm_ort import ExpertManager, OptionError, OptionTypeError
from hivellm_ort.server import ServerLimits, ServerOptions, create_app

KEYS = ("first-key", "second-key")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_let_in(key: str, manager: ExpertManager) -> None:
    """Any of the keys will do, whatever the case of the scheme."""
    with TestClient(create_app(manager, ServerOptions(keys=KEYS)), base_url="http://localhost") as client:
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} {key}"}
            assert (
                200
                == client.post("/v1/chat/completions", json=chat(max_tokens=1), headers=headers).status_code
            )


@pytest.mark.parametrize(
    "header",
    ["", "Bearer ", "Bearer first-ke", "Bearer first-keyy", "Basic first-key", "first-key", "Bearer é"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/ready"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("GET", "/health/"),
        ("GET", "http://localhost//health"),
    ],
)
def test_nobody_else_is(method: str, path: str, header: str, manager: ExpertManager) -> None:
    """Every route wants a key, those that are not there too; the error says how to send it."""
    headers = {"authorization": header.encode()} if header else {}
    with TestClient(create_app(manager, ServerOptions(keys=KEYS)), base_url="http://localhost") as client:
        response = client.request(method, path, headers=headers, content=b"{" * 10)  # type: ignore[arg-type]
    error = error_of(response)
    assert (401, "authentication_error", "invalid_api_key") == (
        response.status_code,
        error["type"],
        error["code"],
    )
    assert "Bearer" == response.headers["www-authenticate"]
    assert all(key not in response.text for key in KEYS)


def test_health_is_open(manager: ExpertManager) -> None:
    """A supervisor asks for health without a key."""
    with TestClient(create_app(manager, ServerOptions(keys=KEYS)), base_url="http://localhost") as client:
        assert 200 == client.get("/health").status_code


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(host: str, client: TestClient) -> None:
    """By default the server answers to the names that this machine has for itself."""
    assert 200 == client.get("/health", headers={"host": host}).status_code


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:80@localhost", "", "127.0.0.1.nip.io", "[::2]"],
)
def test_names_of_others(host: str, client: TestClient) -> None:
    """A page that made its own name lead here is not answered, also where it asks for health."""
    response = client.get("/health", headers={"host": host})
    assert (400, "invalid_host") == (response.status_code, error_of(response)["code"])


def test_names_that_the_operator_allows(manager: ExpertManager) -> None:
    """Names, all below a name, or any."""
    for allowed, host, status in (
        (("a.example",), "a.example", 200),
        (("a.example",), "www.a.example", 400),
        (("*.example",), "b.example", 200),
        (("*",), "anything", 200),
    ):
        options = ServerOptions(allowed_hosts=allowed)
        with TestClient(create_app(manager, options), base_url="http://localhost") as client:
            assert status == client.get("/health", headers={"host": host}).status_code


def test_pages_of_other_sites(manager: ExpertManager, client: TestClient) -> None:
    """A browser lets only pages of the sites that the operator names read answers; by default none."""
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/chat/completions", headers=asked).headers
    options = ServerOptions(allowed_origins=("https://a.example",), keys=KEYS)
    with TestClient(create_app(manager, options), base_url="http://localhost") as other:
        response = other.options("/v1/chat/completions", headers=asked)
        assert (200, "https://a.example") == (
            response.status_code,
            response.headers["access-control-allow-origin"],
        )
        asked["origin"] = "https://b.example"
        response = other.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in response.headers


def test_every_response_has_an_id(client: TestClient) -> None:
    """The client's own where it is sound, else a new one."""
    assert "mine-1" == client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
    for given in ("", "x" * 200, "a b", "a\x7f"):
        made = client.get("/nothing", headers={"x-request-id": given}).headers["x-request-id"]
        assert (True, True) == (made.startswith("req-"), made != given)


@pytest.mark.parametrize("key", ["", "a b", "é", "a\nb"])
def test_keys_that_no_header_can_hold(key: str) -> None:
    """A key that no client can send, or that is empty, is refused. The error does not show it."""
    with pytest.raises(OptionError, match=r"keys\[1\]: a key has one or more visible ASCII") as caught:
        ServerOptions(keys=("good", key))
    assert not key or key not in str(caught.value)


def test_options_of_wrong_types() -> None:
    """Keys must be a tuple, and a limit must be a number above 0."""
    with pytest.raises(OptionTypeError, match="keys is str: pass a tuple"):
        ServerOptions(keys="secret")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="allowed_hosts has 'a"):
        ServerOptions(allowed_hosts=("a*b",))
    with pytest.raises(OptionTypeError, match="max_n is float: pass a whole number"):
        ServerLimits(max_n=2.5)  # type: ignore[arg-type]
    with pytest.raises(OptionTypeError, match="body_timeout is bool: pass a number of seconds"):
        ServerLimits(body_timeout=True)
    with pytest.raises(OptionError, match="max_waiting is 0: it must be above 0"):
        ServerLimits(max_waiting=0)
