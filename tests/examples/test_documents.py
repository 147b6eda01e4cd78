"""The Python of the README and of the documents runs, on golden packages."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_packages import Examples
from support.golden import golden, with_base

from hivellm_ort import Expert, ExpertManager, ExpertManifest
from hivellm_ort.routing import Candidate

ROOT = Path(__file__).parents[2]
PYTHON = {
    path.relative_to(ROOT).as_posix(): re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
    if "```python\n" in (text := path.read_text(encoding="utf-8"))
}

# They need: transformers and PEFT (test_migration_guide.py runs it), a GPU, and room for tools and their results, for
# which the tiny models' context of 256 tokens is too short.
NOT_RUN = {"docs/migration.md", "docs/providers.md", "docs/tools.md"}

# What a document takes for granted needs these.
EXTRAS = {
    "docs/grammars.md": ["pydantic"],
    "docs/observability.md": ["fastapi", "opentelemetry.sdk"],
    "docs/server.md": ["fastapi", "uvicorn", "openai"],
}


@pytest.fixture
def names(examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What documents take for granted: an expert, a manager, and packages in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("sql", "json"):
        shutil.copy(getattr(examples, name), f"expert-{name}.expert")
        shutil.copy(getattr(examples, name), f"out/expert-{name}-smollm2-135m-instruct.v0.1.0.expert")
    with_base(
        "json", tmp_path / "expert-elastic.expert", manifest={"routing": {"keywords": ["elasticsearch"]}}
    )
    manifest = ExpertManifest.from_file(examples.adapter / "manifest.json")
    with Expert.load(examples.sql) as expert, ExpertManager() as manager:
        manager.load_experts({"sql": examples.sql, "json": examples.json})
        yield {
            "expert": expert,
            "manager": manager,
            "ddl": "CREATE TABLE orders (id INT);",
            "prompt": "Count all orders",
            "manifests": [manifest],
            "candidates": [Candidate(manifest.name, manifest.routing, manifest.capabilities)],
            "similarity": lambda prompt, name: 0.5,
        }


@contextlib.contextmanager
def served(manager: ExpertManager) -> Iterator[str]:
    """A server for the manager; its address."""
    import uvicorn

    from hivellm_ort.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(manager), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("document", PYTHON)
def test_python_of_a_document(document: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks run one after another; those that need more than this library are compiled."""
    sources = PYTHON[document]
    blocks = [compile(block, document, "exec") for block in sources]
    if document in NOT_RUN:
        return
    for extra in EXTRAS.get(document, []):
        pytest.importorskip(extra)
    given = {**names}
    if document == "docs/messages.md":
        names["expert"] = Expert.load(golden("thinking"))  # its template shows tools
    running = contextlib.ExitStack()
    if document == "docs/server.md":
        address = running.enter_context(served(names["manager"]))
        blocks = [
            compile(block.replace("http://127.0.0.1:8000", address), document, "exec") for block in sources
        ]
    if document in ("docs/observability.md", "docs/server.md"):
        import fastapi

        names["app"] = fastapi.FastAPI()
    if document == "docs/observability.md":
        import opentelemetry.trace

        # A process keeps the provider that it was given first.
        monkeypatch.setattr(opentelemetry.trace, "set_tracer_provider", lambda provider: None)
    try:
        with running:
            for block in blocks:
                exec(block, names)
    finally:
        if "client" in names:
            names["client"].close()
        for name in ("expert", "manager"):
            if names[name] is not given[name]:
                names[name].close()
        names.clear()  # FastAPI keeps functions of documents, and they these names


DOCUMENTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "examples/**/*.md",
        "conformance/*.md",
        "models/**/*.md",
        "benchmarks/**/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
]


SOURCES = [ROOT, ROOT / "hivellm_ort", ROOT / "export", ROOT / "export" / "hivellm_export"]
"""What paths of Python files in documents are relative to."""


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(path: Path, link: str) -> bool:
    """Whether a link of a document leads to a file, and to a heading of it where it says which."""
    file, _, anchor = link.partition("#")
    target = path.parent / file if file else path
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_is_there(path: Path) -> None:
    """Its links lead to files and headings, and the files of this repository that it names exist."""
    whole = path.read_text(encoding="utf-8")
    shell = re.findall(r"^```sh\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", whole, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert [] == [link for link in links if not leads_somewhere(path, link)]
    # In the text between backticks, and in commands of a shell.
    files = re.findall(r"`((?:\w+/)+[a-z_]+\.py)`", text)
    files += [name for block in shell for name in re.findall(r"(?<![\w/.])((?:\w+/)+\w+\.py)\b", block)]
    assert [] == [file for file in files if not any((root / file).exists() for root in SOURCES)]


def test_the_example_of_the_conformance_vectors_is_one_of_them() -> None:
    """The line in the README of the vectors is a line of the files."""
    (example,) = re.findall(
        r"^```json\n(.*?)\n```$", (ROOT / "conformance/README.md").read_text("utf-8"), re.MULTILINE
    )
    lines = {
        line for path in ROOT.glob("conformance/*.jsonl") for line in path.read_text("utf-8").splitlines()
    }
    assert example in lines
