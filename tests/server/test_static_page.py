"""The files of the page at `/`: who gets them, and what they may do."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from api_calls import error_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_command import Command
from support.golden import BASE, golden

import hivellm_ort.server
from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerOptions, create_app

FOLDER = Path(hivellm_ort.server.__file__).parent / "page"
FILES = {"/" if file.name == "index.html" else f"/page/{file.name}": file for file in FOLDER.iterdir()}
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("path", sorted(FILES))
def test_files_need_no_key(path: str, manager: ExpertManager) -> None:
    """Each file has its media type and a Content-Security-Policy."""
    app = create_app(manager, ServerOptions(keys=("secret",)))
    with TestClient(app, base_url="http://localhost") as client:
        response = client.get(path)
        assert 200 == client.head(path).status_code
    assert (200, FILES[path].read_bytes()) == (response.status_code, response.content)
    assert TYPES[FILES[path].suffix] == response.headers["content-type"].removesuffix("; charset=utf-8")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert all(word not in policy for word in ("unsafe", "http", "*", "data:"))
    assert "nosniff" == response.headers["x-content-type-options"]


def test_no_page(manager: ExpertManager) -> None:
    """Without the page its paths are 404, and without a key they are 401."""
    with TestClient(create_app(manager, ServerOptions(page=False)), base_url="http://localhost") as client:
        for path in FILES:
            response = client.get(path)
            assert (404, "not_found") == (response.status_code, error_of(response)["code"])
    options = ServerOptions(page=False, keys=("secret",))
    with TestClient(create_app(manager, options), base_url="http://localhost") as client:
        assert 401 == client.get("/").status_code


def test_no_page_by_option(cache: Path) -> None:
    """`--no-page` leaves the API alone."""
    arguments = ["--expert", f"sql={golden('sql')}", "--base", str(BASE), "--threads", "1", "--trust", "off"]
    with Command([*arguments, "--no-page"], cache) as command:
        assert [404, 200] == [httpx.get(command.address + path).status_code for path in ("/", "/health")]


def test_other_names_of_the_server(manager: ExpertManager) -> None:
    """A page of another name, which leads here, does not get the page either."""
    with TestClient(create_app(manager, ServerOptions()), base_url="http://evil.example") as client:
        assert 400 == client.get("/").status_code


def test_below_a_path_of_another_application(manager: ExpertManager) -> None:
    """The page names its files from where it is, so that they are found there, too."""
    app = FastAPI()
    app.mount("/ai", create_app(manager, ServerOptions(keys=("secret",))))
    with TestClient(app, base_url="http://localhost") as client:
        page = client.get("/ai/")
        names = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
        assert 200 == page.status_code
        assert {"page/page.css", "page/page.js", "page/icon.svg"} == set(names)
        assert {200} == {client.get(f"/ai/{name}").status_code for name in names}


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_nothing_is_read_as_html(file: Path) -> None:
    """No file writes HTML from a text, runs a text as a script, or names another host."""
    text = file.read_text(encoding="utf-8")
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\son\w+=|\sstyle="
    assert [] == re.findall(banned, text)
    hosts = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert hosts <= {"http://www.w3.org/2000/svg"}
    if file.name == "index.html":
        assert "<style" not in text
        assert [] == re.findall(r"<script(?![^>]*\ssrc=)", text)
