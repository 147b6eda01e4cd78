"""The list of pinned keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
from integrity_samples import OTHER_SEED, public

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.integrity.truststore import TrustStore
from hivellm_ort.package.folders import default_root

KEY, OTHER = public(), public(OTHER_SEED)


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    """An empty list in a folder that is not there yet."""
    return TrustStore(tmp_path / "new" / "trusted_keys.json")


def test_add_and_remove(store: TrustStore) -> None:
    """Keys are kept by name in the order they came, and go by name or by key."""
    assert {} == store.mapping()
    store.add("zoë", KEY)
    store.add("a", OTHER)
    assert [("zoë", KEY), ("a", OTHER)] == list(TrustStore(store.path).mapping().items())
    assert {"format": 1, "keys": {"zoë": KEY, "a": OTHER}} == json.loads(store.path.read_bytes())
    assert "zoë" == store.remove(KEY)
    assert "a" == store.remove("a")
    assert {} == store.mapping()
    assert {"trusted_keys.json", "trusted_keys.json.lock"} >= {p.name for p in store.path.parent.iterdir()}


def test_add_again(store: TrustStore) -> None:
    """The same key under the same name changes nothing."""
    store.add("a", KEY)
    before = store.path.stat().st_mtime_ns
    store.add("a", KEY)
    assert (before, {"a": KEY}) == (store.path.stat().st_mtime_ns, store.mapping())


def test_conflicts(store: TrustStore) -> None:
    """A name keeps its key and a key its name; the message says what to do, and nothing changes."""
    store.add("a", KEY)
    with pytest.raises(
        IntegrityError, match=r"'a' is pinned to another key, ed25519:\w{16}…; ask .*trust remove"
    ):
        store.add("a", OTHER)
    with pytest.raises(IntegrityError, match=r"is pinned as 'a' already; use that name, or remove it"):
        store.add("b", KEY)
    assert {"a": KEY} == store.mapping()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2J", "x" * 81, KEY, "ed25519:", "\u202e"])
def test_bad_names(store: TrustStore, name: str) -> None:
    """A name must be printable, short and no key; nothing is written else."""
    with pytest.raises(IntegrityError, match="is not a name for a key"):
        store.add(name, KEY)
    assert not store.path.parent.exists()


@pytest.mark.parametrize("key", ["", "a", KEY[8:], KEY + "0", KEY.upper(), KEY + "\n", "ed25519:" + "g" * 64])
def test_bad_keys(store: TrustStore, key: str) -> None:
    """A key must have its one form; nothing is written else."""
    with pytest.raises(IntegrityError, match="is not a public key; give"):
        store.add("a", key)
    assert not store.path.parent.exists()


def test_remove_unknown(store: TrustStore) -> None:
    """Removing what is not pinned is an error."""
    store.add("a", KEY)
    for unknown in ("b", OTHER):
        with pytest.raises(IntegrityError, match="is not pinned; see 'hivellm-ort trust list'"):
            store.remove(unknown)
    assert {"a": KEY} == store.mapping()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "keys": {}}',
        '{"format": 1, "keys": []}',
        '{"format": 1, "keys": {}, "more": 1}',
        '{"format": 1, "keys": {"a": 1}}',
        '{"format": 1, "keys": {"a": "ed25519:0"}}',
        f'{{"format": 1, "keys": {{"": "{KEY}"}}}}',
        f'{{"format": 1, "keys": {{"a": "{KEY}", "a": "{OTHER}"}}}}',
        f'{{"format": 1, "keys": {{"a": "{KEY}", "b": "{KEY}"}}}}',
        '{"format": 1, "keys": {"a": "' + "0" * (5 << 20) + '"}}',
    ],
    ids=lambda text: text[:50],
)
def test_damaged_file(store: TrustStore, text: str) -> None:
    """A damaged list is an error that names the file and the cure, and it is left alone."""
    store.path.parent.mkdir()
    store.path.write_text(text)
    for act in (store.mapping, lambda: store.add("c", OTHER), lambda: store.remove("a")):
        with pytest.raises(LoadError, match="the pinned keys cannot be read") as caught:
            act()
        assert str(store.path) in str(caught.value)
    assert text == store.path.read_text()


def test_folder_cannot_be_written(tmp_path: Path) -> None:
    """A list that cannot be written is a typed error."""
    (tmp_path / "file").write_bytes(b"")
    store = TrustStore(tmp_path / "file" / "keys.json")
    with pytest.raises(LoadError, match=r"cannot be written: .*; check the permissions"):
        store.add("a", KEY)


def test_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is in HIVELLM_HOME, else in the folder of the user's configuration, never in the cache."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path))
    assert tmp_path / "trusted_keys.json" == TrustStore().path
    monkeypatch.delenv("HIVELLM_HOME")
    config = Path(platformdirs.user_config_dir("hivellm-ort", appauthor=False))
    assert config / "trusted_keys.json" == TrustStore().path
    assert default_root() not in TrustStore().path.parents


def test_two_processes(store: TrustStore) -> None:
    """Keys that two processes add at the same time are all kept."""
    code = (
        "import sys; from pathlib import Path\n"
        "from hivellm_ort.integrity.truststore import TrustStore\n"
        "store = TrustStore(Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for index in range(30):\n"
        "    store.add(f'{sys.argv[2]} {index}', 'ed25519:' + f'{sys.argv[2]}{index:063d}')\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    for process in running:
        assert process.stdout is not None
        assert b"ready" == process.stdout.readline().strip()
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    assert [0, 0] == [process.returncode for process in running]
    assert {f"{name} {index}" for name in "ab" for index in range(30)} == set(store.mapping())
