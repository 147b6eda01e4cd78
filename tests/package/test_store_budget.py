"""The store keeps to a size by removing what was not used for longest."""

# The expected value comes first.

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from package_samples import bundle, expert, no_work_left
from store_samples import assert_whole

from hivellm_ort.errors import LoadError
from hivellm_ort.package import folders as folders_module
from hivellm_ort.package import records as records_module
from hivellm_ort.package.sizes import format_size, parse_size
from hivellm_ort.package.store import Store, UnpackedPackage

KB = 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "store"


def _add(store: Store, name: str, *, used: int, base: bytes | None = None) -> UnpackedPackage:
    """A package of a bit more than 10 KB, and a base of a bit more than its weights, last used at a time."""
    package = store.root.parent / f"{name}.expert"
    adapter = (name * 10 * KB).encode()[: 10 * KB]
    expert(package, adapter=adapter, base=None if base is None else bundle(base))
    unpacked = store.unpack(package)
    for path in (unpacked.root.parent, *unpacked.bundles):
        if path is not None:
            os.utime(path, (used, used))
    return unpacked


def _left(store: Store) -> list[str]:
    """The adapters' first letters of the packages left."""
    return sorted(path.read_text()[0] for path in store.root.glob("packages/*/files/onnx/*.safetensors"))


def test_no_limit(root: Path) -> None:
    """Without a size nothing is removed."""
    store = Store(root)
    for number, name in enumerate("abc"):
        _add(store, name, used=number + 1)
    assert (None, ["a", "b", "c"]) == (store.max_bytes, _left(store))


def test_least_recently_used_goes(root: Path) -> None:
    """Adding a package removes as many of those used longest ago as it takes, with their blobs."""
    store = Store(root, max_bytes=35 * KB)
    for name, used in (("b", 20), ("a", 10), ("c", 30)):
        _add(store, name, used=used)
    assert ["a", "b", "c"] == _left(store)
    _add(store, "d", used=40)
    assert ["b", "c", "d"] == _left(store)
    assert 45 * KB > store.listing().total_bytes
    assert no_work_left(store)
    assert_whole(root)


def test_use_keeps(root: Path) -> None:
    """Loading a package again makes it, with its base, the last to go."""
    store = Store(root, max_bytes=25 * KB)
    base = _add(store, "a", used=10, base=b"w").bundles[0]
    _add(store, "b", used=20)
    store.unpack(root.parent / "a.expert")
    assert 20 < base.stat().st_mtime
    _add(store, "c", used=30)
    assert ["a", "c"] == _left(store)


def test_what_was_just_added_stays(root: Path) -> None:
    """A package larger than the limit stays with its base, and everything else is removed."""
    store = Store(root, max_bytes=0)
    _add(store, "a", used=10, base=b"a" * KB)
    second = _add(store, "b", used=20, base=b"b" * KB)
    assert ["b"] == _left(store)
    assert [*second.bundles] == store.bundles()
    assert_whole(root)


def test_shared_base_counts_once_and_goes_last(root: Path) -> None:
    """Two packages of one base count it once, and it stays as long as one of them does."""
    store = Store(root, max_bytes=130 * KB)
    first = _add(store, "a", used=10, base=b"w" * 100 * KB)
    _add(store, "b", used=20, base=b"w" * 100 * KB)
    assert ["a", "b"] == _left(store)
    os.utime(first.bundles[0], (1, 1))
    _add(store, "c", used=30)
    assert ["b", "c"] == _left(store)
    assert [*first.bundles] == store.bundles()
    # The last package of the base is next, and the base after it.
    _add(Store(root, max_bytes=105 * KB), "d", used=40)
    assert (["c", "d"], []) == (_left(store), store.bundles())
    assert_whole(root)


def test_shared_files_count_once(root: Path) -> None:
    """A file of several packages counts once, and is freed with the last of them."""
    store = Store(root, max_bytes=15 * KB)
    for number in range(3):
        manifest = {"name": f"expert-{number}", "version": "1"}
        store.unpack(expert(root.parent / f"{number}.expert", manifest=manifest, adapter=b"a" * 10 * KB))
    assert ["a", "a", "a"] == _left(store)
    _add(store, "b", used=10)
    assert ["b"] == _left(store)


def test_prepared_adapters_take_part(root: Path) -> None:
    """A new prepared adapter evicts other entries, and is itself evicted later, with its record."""
    store = Store(root, max_bytes=25 * KB)
    _add(store, "a", used=10)
    old = store.prepare_adapter("0" * 64, lambda: b"0" * 10 * KB)
    os.utime(old, (20, 20))
    new = store.prepare_adapter("1" * 64, lambda: b"1" * 10 * KB)
    assert ([], True) == (_left(store), old.exists())
    _add(store, "b", used=40)
    assert ["b"] == _left(store)
    assert [new.with_suffix(".json").name, new.name] == sorted(path.name for path in new.parent.iterdir())


def test_found_bundle_counts_as_used(root: Path) -> None:
    """Finding a base for a thin package counts as use; listing bases does not."""
    store = Store(root, max_bytes=25 * KB)
    base = _add(store, "a", used=10, base=b"w" * 10 * KB).bundles[0]
    os.utime(base, (10, 10))
    assert [base] == store.bundles()
    assert 10 == base.stat().st_mtime
    assert base == store.find_bundle(base.name)
    assert 10 < base.stat().st_mtime
    _add(store, "b", used=20)
    assert (["b"], [base]) == (_left(store), store.bundles())


def test_entry_in_use_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be renamed, such as one in use on Windows, stays, and the next one is removed."""
    store = Store(root, max_bytes=25 * KB)
    held = _add(store, "a", used=10)
    _add(store, "b", used=20)
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path == held.root.parent:
            raise PermissionError(13, "in use")
        return rename(path, target)

    monkeypatch.setattr(folders_module.Path, "rename", refusing)
    _add(store, "c", used=30)
    assert ["a", "c"] == _left(store)


def test_file_held_for_a_moment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a new folder that a scanner holds open is renamed a moment later."""
    monkeypatch.setattr(folders_module, "_WINDOWS", True)
    rename, refusals = Path.rename, iter(range(3))

    def held(path: Path, target: Path) -> Path:
        if target.parent.name == "packages" and next(refusals, None) is not None:
            raise PermissionError(13, "in use")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", held)
    _add(Store(root), "a", used=10)
    assert (["a"], None) == (_left(Store(root)), next(refusals, None))


def test_read_only_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only store still finds its entries."""
    store = Store(root)
    first = _add(store, "a", used=10)

    def read_only(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr(records_module, "write_file", read_only)
    monkeypatch.setattr(records_module, "_TICK_NS", -(10**12))
    monkeypatch.setattr(folders_module, "FileLock", read_only)
    assert first == store.unpack(root.parent / "a.expert")
    assert first == store.unpack(root.parent / "a.expert", check="digest")
    assert 1 == len(store.listing().entries)


def test_size_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HIVELLM_CACHE_SIZE is the size unless one is given; empty is none."""
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "20GB")
    assert (20 * 10**9, 5) == (Store(root).max_bytes, Store(root, max_bytes=5).max_bytes)
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "")
    assert None is Store(root).max_bytes
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "lots")
    with pytest.raises(LoadError, match="HIVELLM_CACHE_SIZE: 'lots' is not a size: write 20GB, 500MB"):
        Store(root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("500MB", 500_000_000),
        ("20GB", 20_000_000_000),
        ("1.5 GiB", 3 << 29),
        (" 2 tb ", 2 * 10**12),
        ("1kib", 1024),
        ("999999999999999999", 999_999_999_999_999_999),
    ],
)
def test_parse_size(text: str, expected: int) -> None:
    """Sizes are decimal, with an i binary, in any case and with or without a space."""
    assert expected == parse_size(text)


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1e9", "1 G", "1,5GB", "1.GB", "20GBit", "0x10", "\u0661MB", "nan"]
)
def test_malformed_size(text: str) -> None:
    """A text that is not a size is refused."""
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (153_757_952, "153.8 MB"), (999_960_000, "1.0 GB")],
)
def test_format_size(size: int, expected: str) -> None:
    """Sizes are shown in decimal units with one digit behind the point."""
    assert expected == format_size(size)
