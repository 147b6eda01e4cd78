"""Damage in the store, in a package folder or in a user's bundle is noticed."""

# The expected value comes first.

from __future__ import annotations

import json
from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, MANIFEST, decoder_json, expert, files_under, no_work_left
from store_samples import assert_whole

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.package.bundle_folders import check_folders
from hivellm_ort.package.filecheck import Check, FileChecker
from hivellm_ort.package.store import Store, open_package


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    "kind",
    ["cut", "gone", "folder", "no index", "index of nothing", "index of another", "newer index", "bad base"],
)
def test_damaged_package_is_unpacked_again(tmp_path: Path, store: Store, kind: str) -> None:
    """A stored file with another size, or an index that is no index, is noticed and replaced."""
    package = expert(tmp_path / "p.expert", base=BASE)
    first = store.unpack(package)
    adapter, index = first.root / "onnx" / "adapter.safetensors", first.root.parent / "index.json"
    match kind:
        case "cut":
            (first.root / "manifest.json").write_bytes(b"{")
        case "gone":
            adapter.unlink()
        case "folder":
            adapter.unlink()
            adapter.mkdir()
        case "no index":
            index.unlink()
        case "index of nothing":
            index.write_bytes(b"{}")
        case "index of another":
            index.write_text(index.read_text().replace(first.sha256, "0" * 64))
        case "newer index":
            index.write_text(index.read_text().replace('"format": 1', '"format": 2'))
        case _:
            index.write_text(index.read_text().replace(f'"{BASE_DIGEST}"', '"../bases"', 1))
    assert first == store.unpack(package)
    assert MANIFEST == json.loads((first.root / "manifest.json").read_bytes())
    assert adapter.is_file()
    assert no_work_left(store)
    assert_whole(store.root)


@pytest.mark.parametrize("where", ["package", "base"])
def test_change_of_equal_size(tmp_path: Path, store: Store, where: str) -> None:
    """A changed byte is found and healed by check='digest', and only by that."""
    package = expert(tmp_path / "p.expert", base=BASE)
    first = store.unpack(package)
    path = first.bundles[0] / "weights.bin" if where == "base" else first.adapter or tmp_path
    good = path.read_bytes()
    path.write_bytes(good.swapcase())
    store.unpack(package)
    assert good.swapcase() == path.read_bytes()
    assert first == store.unpack(package, check="digest")
    assert good == path.read_bytes()
    assert_whole(store.root)


def test_find_bundle_by_digest(tmp_path: Path, store: Store) -> None:
    """A base with a changed byte is found by size, and not by digest."""
    store.unpack(expert(tmp_path / "p.expert", base=BASE))
    folder = store.root / "bases" / BASE_DIGEST
    (folder / "weights.bin").write_bytes(b"WEIGHTS")
    assert folder == store.find_bundle(BASE_DIGEST)
    assert None is store.find_bundle(BASE_DIGEST, check="digest")


def test_no_regular_file(tmp_path: Path) -> None:
    """A folder is not a regular file, whatever its size."""
    fault = FileChecker("digest").find_fault(tmp_path, tmp_path.stat().st_size, "0" * 64)
    assert "is not a regular file" == fault


def test_check_has_two_values(tmp_path: Path, store: Store) -> None:
    """Any other check is a ValueError."""
    with pytest.raises(ValueError, match="'size' or 'digest'"):
        store.unpack(expert(tmp_path / "p.expert"), check="none")  # type: ignore[arg-type]


def _bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in BASE.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("check", ["size", "digest"])
def test_whole_bundle_passes(tmp_path: Path, check: Check) -> None:
    """A bundle as exported passes, also with a file beside it that the list does not know."""
    bundle = _bundle(tmp_path / "bundle")
    (bundle / ".DS_Store").write_bytes(b"1")
    check_folders([bundle], check)


@pytest.mark.parametrize(
    ("data", "check", "words"),
    [
        (None, "size", "is missing"),
        (b"cut", "size", "has 3 bytes, recorded are 7"),
        (b"WEIGHTS", "digest", "differs from its SHA-256"),
    ],
)
def test_changed_bundle(tmp_path: Path, store: Store, data: bytes | None, check: Check, words: str) -> None:
    """A changed file of a bundle, alone or in a package folder, is an error that names folder and file."""
    package = tmp_path / "package"
    bundle = _bundle(package / "onnx")
    (package / "manifest.json").write_text("{}")
    (bundle / "weights.bin").unlink()
    if data is not None:
        (bundle / "weights.bin").write_bytes(data)
    for opened in (lambda: check_folders([bundle], check), lambda: open_package(package, store, check=check)):
        with pytest.raises(IntegrityError, match=f"'weights.bin', listed in decoder.json, {words}") as caught:
            opened()
        assert str(caught.value).startswith(str(bundle))


def test_same_size_passes_by_size(tmp_path: Path) -> None:
    """The check by size reads no file."""
    bundle = _bundle(tmp_path / "bundle")
    (bundle / "weights.bin").write_bytes(b"WEIGHTS")
    check_folders([bundle])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "./weights.bin", "a\\b"])
def test_list_that_leads_out(tmp_path: Path, name: str) -> None:
    """A decoder.json that lists a file outside its folder is refused before anything of it is read."""
    bundle = _bundle(tmp_path / "bundle")
    entry = {"size": 1, "sha256": "0" * 64}
    (bundle / "decoder.json").write_bytes(decoder_json({name: entry}))
    with pytest.raises(IntegrityError, match=r"decoder\.json: /files"):
        check_folders([bundle], "digest")


def test_no_bundle(tmp_path: Path) -> None:
    """A folder without decoder.json is a ManifestError that names the folder."""
    with pytest.raises(ManifestError, match=r"decoder\.json") as caught:
        check_folders([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_healed_base_reaches_every_package(tmp_path: Path, store: Store) -> None:
    """Unpacking one package again heals the base for all that share it."""
    one = store.unpack(expert(tmp_path / "1.expert", base=BASE))
    two = expert(tmp_path / "2.expert", base=BASE, adapter=b"another")
    (store.root / "bases" / BASE_DIGEST / "weights.bin").write_bytes(b"WEIGHTS")
    store.unpack(two)
    assert BASE == files_under(one.bundles[0])
    assert_whole(store.root)
