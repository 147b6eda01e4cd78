"""`hivellm-ort cache`."""

# The expected value comes first.

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from package_samples import BASE, expert

from hivellm_ort.cli import cache as cache_module
from hivellm_ort.cli.main import main
from hivellm_ort.package.entry_locks import shared_lock
from hivellm_ort.package.store import Store

Invoke = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with one package, in the folder that the command uses."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("HIVELLM_CACHE_SIZE", raising=False)
    store = Store()
    store.unpack(expert(tmp_path / "p.expert", base=BASE))
    return store


@pytest.fixture
def invoke(store: Store) -> Invoke:
    """Run `hivellm-ort cache` with arguments."""
    assert store.root.exists()
    return lambda *arguments, stdin="": CliRunner().invoke(main, ["cache", *arguments], input=stdin)


def _document(result: Result) -> dict[str, object]:
    assert 0 == result.exit_code, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_list(store: Store, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each entry, between the folder and the size of all."""
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "20GB")
    result = invoke("list")
    lines = result.stdout.splitlines()
    assert (0, "", str(store.root)) == (result.exit_code, result.stderr, lines[0])
    assert ["package", "base"] == [line.split()[0] for line in lines[1:-1]]
    assert "expert-demo 0.1.0" in lines[1]
    assert lines[-1].endswith(" of at most 20.0 GB on the disk, shared files counted once")


def test_list_as_json(store: Store, invoke: Invoke) -> None:
    """Standard output is one JSON object with the store and its entries."""
    listing, document = store.listing(), _document(invoke("list", "--json"))
    entries = document.pop("entries")
    assert {"root": str(store.root), "total_bytes": listing.total_bytes, "max_bytes": None} == document
    assert isinstance(entries, list)
    package, base = entries
    assert datetime.fromisoformat(package.pop("last_used")).tzinfo is not None
    assert {
        "kind": "package",
        "key": listing.entries[0].key,
        "name": "expert-demo",
        "version": "0.1.0",
        "precision": "",
        "bases": [base["key"]],
        "bytes": listing.entries[0].size,
        "path": str(listing.entries[0].path),
        "damaged": None,
    } == package


def test_list_check(store: Store, invoke: Invoke) -> None:
    """Damaged entries are marked with the reason if files are read."""
    (next(store.root.glob("bases/*")) / "weights.bin").write_bytes(b"WEIGHTS")
    assert "damaged" not in invoke("list").stdout
    assert 2 == invoke("list", "--check").stdout.count("damaged: ")
    entries = _document(invoke("list", "--check", "--json"))["entries"]
    assert isinstance(entries, list)
    assert "'weights.bin' differs from its SHA-256" == entries[1]["damaged"]


def test_hostile_name(tmp_path: Path, store: Store, invoke: Invoke) -> None:
    """A name from a package reaches the terminal without its control characters."""
    manifest = {"name": "\x1b[2J\u202e" + "x" * 200, "version": "1\n"}
    store.unpack(expert(tmp_path / "q.expert", manifest=manifest))
    lines = invoke("list").stdout.splitlines()
    assert 5 == len(lines)
    assert any(r"\x1b[2J\u202exxx" in line for line in lines)
    assert all(line.isprintable() and len(line) < 100 for line in lines[1:])


def test_prune(store: Store, invoke: Invoke) -> None:
    """Nothing is removed without a limit. A size or an age removes the entries beyond it."""
    assert invoke("prune").stdout.startswith("removed 0, freed 0 B; ")
    assert 0 == invoke("prune", "--older-than", "1", "--max-size", "1MB").exit_code
    before = store.listing().total_bytes
    document = _document(invoke("prune", "--max-size", "0", "--json"))
    after = store.listing().total_bytes
    removed = document.pop("removed")
    assert {"freed_bytes": before - after, "total_bytes": after} == document
    assert isinstance(removed, list)
    assert ["package", "base"] == [entry["kind"] for entry in removed]
    assert () == store.listing().entries


def test_prune_what_is_damaged(store: Store, invoke: Invoke) -> None:
    """A changed byte takes the base and its package."""
    (next(store.root.glob("bases/*")) / "weights.bin").write_bytes(b"WEIGHTS")
    assert "removed 2, freed " in invoke("prune").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "--max-size", "lots"], "'lots' is not a size"),
        (["clear"], "pass --yes"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_refused(store: Store, invoke: Invoke, arguments: list[str], words: str, as_json: bool) -> None:
    """A wrong size, or a question without a terminal, is one line on standard error and removes nothing."""
    result = invoke(*arguments, *(["--json"] if as_json else []))
    assert (2, 1) == (result.exit_code, result.stderr.count("\n"))
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert as_json == (words in result.stdout)
    assert 2 == len(store.listing().entries)


def test_malformed_size_variable(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed HIVELLM_CACHE_SIZE is named."""
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "lots")
    assert "error: HIVELLM_CACHE_SIZE: 'lots' is not a size" in invoke("list").stderr


def test_clear(store: Store, invoke: Invoke) -> None:
    """With --yes everything is removed."""
    size = store.listing().total_bytes
    freed = {"freed_bytes": size, "total_bytes": 0, "in_use": 0}
    assert freed == _document(invoke("clear", "--yes", "--json"))
    assert "freed 0 B\n" == invoke("clear", "--yes").stdout


@pytest.mark.skipif(
    os.name == "nt", reason="a folder with an open file cannot be renamed there, and is held too"
)
def test_clear_says_what_is_in_use(store: Store, invoke: Invoke) -> None:
    """Entries that are being loaded stay, and the command prints their number."""
    entry = store.listing().entries[0]
    with shared_lock(entry.path):
        assert "; 1 in use were left (" in invoke("clear", "--yes").stdout
    assert [entry.path] == [left.path for left in store.listing().entries]
    assert 0 == _document(invoke("clear", "--yes", "--json"))["in_use"]


@pytest.mark.parametrize(("answer", "left"), [("n\n", 2), ("", 2), ("y\n", 0)])
def test_clear_asks(
    store: Store, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    """On a terminal it asks, on standard error, and only a yes removes anything."""
    monkeypatch.setattr(cache_module, "input_is_a_terminal", lambda: True)
    result = invoke("clear", stdin=answer)
    assert f"from {store.root}?" in result.stderr
    assert left == len(store.listing().entries)
    assert (0 if left == 0 else 1) == result.exit_code
