"""Listing, pruning and clearing the store."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, expert, files_under, no_work_left
from store_samples import assert_whole

from hivellm_ort.package.store import Store

KEY = "ab" * 32
DAY = 24 * 60 * 60

_decoder = json.dumps({**json.loads(BASE["decoder.json"]), "name": "Tiny", "precision": "int8"}).encode()
NAMED_BASE = {**BASE, "decoder.json": _decoder}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a package, its base, a prepared adapter, a download, a user's bundle and keys."""
    store = Store(tmp_path / "store")
    store.unpack(expert(tmp_path / "p.expert", base=NAMED_BASE))
    store.prepare_adapter(KEY, lambda: b"tensors")
    for name in ("downloads/base.gguf", "models/mine/decoder.json", "trusted_keys.json"):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return store


def test_empty() -> None:
    """A missing store has no entries, and is not made."""
    store = Store(Path("nowhere"))
    assert ((), 0) == (store.listing().entries, store.listing().total_bytes)
    assert [] == store.prune()
    store.clear()
    assert not store.root.exists()


def test_entries(tmp_path: Path, store: Store) -> None:
    """Every entry has its names, size and time. A file with two links counts once."""
    listing = store.listing()
    found = [(e.kind, e.name, e.version, e.precision, e.fault) for e in listing.entries]
    assert [
        ("package", "expert-demo", "0.1.0", "", None),
        ("base", "Tiny", "", "int8", None),
        ("adapter", "", "", "", None),
        ("downloads", "", "", "", None),
    ] == found
    package, base, adapter, downloads = listing.entries
    assert hashlib.sha256((tmp_path / "p.expert").read_bytes()).hexdigest() == package.key
    assert hashlib.sha256(_decoder).hexdigest() == base.key
    assert (base.key,) == package.bases
    assert (KEY, 2) == (adapter.key, downloads.size)
    assert sum(map(len, NAMED_BASE.values())) == base.size
    assert sum(map(len, files_under(package.path).values())) == package.size
    assert all(abs(time.time() - entry.last_used) < 60 for entry in listing.entries)
    records = sum(map(len, files_under(store.root / "records").values()))
    assert sum(entry.size for entry in listing.entries) + records == listing.total_bytes
    assert store.root == listing.root


def test_damage_is_marked(store: Store) -> None:
    """A missing file shows at once, a changed byte when files are hashed, each once."""
    package, base, *_ = store.listing().entries
    (base.path / "weights.bin").write_bytes(b"WEIGHTS")
    assert [None] * 4 == [entry.fault for entry in store.listing().entries]
    steps: list[int] = []
    faults = [entry.fault for entry in store.listing(check="digest", progress=steps.append).entries]
    differs = "'weights.bin' differs from its SHA-256"
    assert [f"its base: {differs}", differs, None, None] == faults
    assert store.listing().total_bytes > sum(steps) > 0
    (package.path / "files" / "manifest.json").unlink()
    (store.root / "adapters" / f"{KEY}.json").unlink()
    package, _, adapter, _ = store.listing().entries
    assert ("'manifest.json' is missing", "") == (package.fault, package.name)
    assert "cannot be read" in (adapter.fault or "")
    (package.path / "index.json").write_bytes(b"")
    assert "index.json is missing or damaged" == store.listing().entries[0].fault


def test_prune_removes_what_is_damaged(tmp_path: Path, store: Store) -> None:
    """A changed byte in a base takes the base and its package, and nothing else."""
    base = store.listing().entries[1]
    (base.path / "weights.bin").write_bytes(b"WEIGHTS")
    assert ["package", "base"] == [entry.kind for entry in store.prune()]
    assert ["adapter", "downloads"] == [entry.kind for entry in store.listing().entries]
    assert [] == list((store.root / "blobs").iterdir())
    assert NAMED_BASE == files_under(store.unpack(tmp_path / "p.expert").bundles[0])
    assert_whole(store.root)


def test_prune_sweeps_work(store: Store) -> None:
    """Unfinished files of a killed process are removed, whatever their age."""
    (store.root / "tmp" / "left").mkdir()
    (store.root / "tmp" / "left" / "file").write_bytes(b"1")
    assert [] == store.prune()
    assert no_work_left(store)


def test_prune_by_age(store: Store) -> None:
    """Entries that were not used for long are removed. Use of a package counts for its base. Downloads stay."""
    package, base, adapter, _ = store.listing().entries
    old = time.time() - 10 * DAY
    for path in (base.path, adapter.path):
        os.utime(path, (old, old))
    assert [] == store.prune(unused_days=11)
    assert ["adapter"] == [entry.kind for entry in store.prune(unused_days=9)]
    os.utime(package.path, (old, old))
    assert ["package", "base"] == [entry.kind for entry in store.prune(unused_days=9)]
    assert ["downloads"] == [entry.kind for entry in store.listing().entries]


def test_prune_to_a_size(store: Store) -> None:
    """A size, given or the store's own, is kept to."""
    assert [] == store.prune(max_bytes=10_000)
    assert ["package", "base", "adapter"] == [entry.kind for entry in Store(store.root, max_bytes=0).prune()]


def test_clear(store: Store) -> None:
    """Everything is removed except the user's own bundles and keys."""
    (store.root / "packages" / ".DS_Store").write_bytes(b"1")
    store.clear()
    left = sorted(files_under(store.root))
    assert [".lock", "models/mine/decoder.json", "trusted_keys.json"] == left
    assert ((), 0) == (store.listing().entries, store.listing().total_bytes)
    assert no_work_left(store)


def test_the_users_own_is_never_touched(store: Store) -> None:
    """Pruning by age and size leaves the user's bundles and keys, old as they may be."""
    for name in ("models", "models/mine", "models/mine/decoder.json", "trusted_keys.json"):
        os.utime(store.root / name, (1, 1))
    store.prune(max_bytes=0, unused_days=0)
    assert [store.root / "models" / "mine"] == store.models()
    assert (store.root / "trusted_keys.json").is_file()
    assert None is store.find_bundle(BASE_DIGEST)
