"""Equal files are on the disk once."""

# The expected value comes first.

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, bundle, expert, files_under
from store_samples import assert_whole

from hivellm_ort.package.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def _digests(*contents: bytes) -> list[str]:
    return sorted(hashlib.sha256(content).hexdigest() for content in contents)


def _blobs(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "blobs").iterdir())


def test_every_file_is_a_blob(tmp_path: Path, store: Store) -> None:
    """Members and bundle files are links to blobs named by their digests; the store's index is not."""
    unpacked = store.unpack(expert(tmp_path / "p.expert", base=BASE))
    manifest = unpacked.root / "manifest.json"
    assert _digests(manifest.read_bytes(), b"adapter", *BASE.values()) == _blobs(store)
    assert manifest.samefile(store.root / "blobs" / _digests(manifest.read_bytes())[0])
    assert_whole(store.root)


def test_equal_files_of_two_packages(tmp_path: Path, store: Store) -> None:
    """Two packages share their equal files, and two bases theirs, on the disk."""
    first = store.unpack(expert(tmp_path / "1.expert", base=BASE))
    second = store.unpack(expert(tmp_path / "2.expert", base=bundle(b"other weights")))
    assert first.root != second.root
    assert (first.root / "manifest.json").samefile(second.root / "manifest.json")
    assert (first.adapter or tmp_path).samefile(second.adapter or tmp_path)
    (one,), (two,) = first.bundles, second.bundles
    assert (one / "tokenizer.json").samefile(two / "tokenizer.json")
    assert not (one / "weights.bin").samefile(two / "weights.bin")
    assert_whole(store.root)


@pytest.mark.parametrize("data", [b"Adapter", b"cut"], ids=["changed", "cut"])
def test_damaged_blob_is_replaced(tmp_path: Path, store: Store, data: bytes) -> None:
    """A damaged blob is replaced by the newly unpacked file."""
    first = store.unpack(expert(tmp_path / "1.expert"))
    (store.root / "blobs" / _digests(b"adapter")[0]).write_bytes(data)
    second = store.unpack(expert(tmp_path / "2.expert", base=BASE))
    assert b"adapter" == (second.adapter or tmp_path).read_bytes()
    assert b"adapter" == (store.root / "blobs" / _digests(b"adapter")[0]).read_bytes()
    # The first package was linked to the damaged file, and notices on its own next use.
    assert data == (first.adapter or tmp_path).read_bytes()
    store.unpack(tmp_path / "1.expert", check="digest")
    assert (first.adapter or tmp_path).samefile(second.adapter or tmp_path)
    assert_whole(store.root)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_without_hard_links(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """If no link can be made, files stay where they are."""
    one = store.unpack(expert(tmp_path / "1.expert", base=BASE))

    def no_link(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    for target in (store, Store(tmp_path / "without")):
        two = target.unpack(expert(tmp_path / "2.expert", base=bundle(b"other")))
        assert not (one.adapter or tmp_path).samefile(two.adapter or tmp_path)
        assert b"adapter" == (two.adapter or tmp_path).read_bytes()
        assert bundle(b"other") == files_under(two.bundles[0])
        assert two == target.unpack(tmp_path / "2.expert", check="digest")
        assert_whole(target.root)
    assert [] == list((tmp_path / "without" / "blobs").iterdir())
    assert 0 < Store(tmp_path / "without").listing().total_bytes


def test_prune_removes_unlinked_blobs(tmp_path: Path, store: Store) -> None:
    """A blob without links is removed by the next pruning; a blob in use stays."""
    store.unpack(expert(tmp_path / "p.expert", base=BASE))
    (store.root / "blobs" / ("0" * 64)).write_bytes(b"left over")
    weights = store.root / "bases" / BASE_DIGEST / "weights.bin"
    assert [] == store.prune()
    assert "0" * 64 not in _blobs(store)
    assert weights.samefile(store.root / "blobs" / _digests(b"weights")[0])
