"""The store unpacks a package once and notices damage."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from package_samples import (
    BASE,
    BASE_DIGEST,
    HIVELLM,
    MANIFEST,
    entry,
    expert,
    files_under,
    no_work_left,
    save,
    tar,
)

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package import store as store_module
from hivellm_ort.package.archive import ArchiveContents, Limits, write
from hivellm_ort.package.store import Store, UnpackedPackage, default_root, open_package


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def test_unpacks(tmp_path: Path, store: Store) -> None:
    """A whole package gives its folder, its adapter and its base."""
    package = expert(tmp_path / "p.expert", base=BASE)
    unpacked = store.unpack(package)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    root = store.root / "packages" / digest / "files"
    assert (root, digest) == (unpacked.root, unpacked.sha256)
    assert MANIFEST == json.loads((root / "manifest.json").read_bytes())
    assert root / "onnx" / "adapter.safetensors" == unpacked.adapter
    assert b"adapter" == (root / "onnx" / "adapter.safetensors").read_bytes()
    assert store.root / "bases" / BASE_DIGEST == unpacked.bundle
    assert BASE == files_under(store.root / "bases" / BASE_DIGEST)
    names = ["manifest.json", "onnx/adapter.safetensors", *(f"onnx/{name}" for name in BASE)]
    assert names == [member.name for member in unpacked.members]
    assert ["adapter.safetensors"] == [path.name for path in (root / "onnx").iterdir()]
    assert no_work_left(store)


def test_thin_package(tmp_path: Path, store: Store) -> None:
    """A package without a base or without an adapter says so."""
    thin = store.unpack(expert(tmp_path / "thin.expert"))
    assert (True, None) == (thin.adapter is not None, thin.bundle)
    bare = store.unpack(expert(tmp_path / "bare.expert", adapter=None))
    assert (None, None) == (bare.adapter, bare.bundle)
    base_only = store.unpack(expert(tmp_path / "base.expert", adapter=None, base=BASE))
    assert (None, store.root / "bases" / BASE_DIGEST) == (base_only.adapter, base_only.bundle)


def test_second_time_is_found(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked is found again without touching the archive's members, also by another store object."""
    package = expert(tmp_path / "p.expert", base=BASE)
    first = store.unpack(package)
    monkeypatch.setattr(store_module, "extract", _never)
    assert first == store.unpack(package)
    assert first == Store(store.root).unpack(package)
    copy = tmp_path / "renamed.expert"
    copy.write_bytes(package.read_bytes())
    assert first == store.unpack(copy)


def _never(*_args: object, **_options: object) -> ArchiveContents:
    raise AssertionError("the archive was unpacked again")


def test_skipped_members_and_notes_are_remembered(tmp_path: Path, store: Store) -> None:
    """Notes and skipped members are the same when a package is found again."""
    manifest = entry("manifest.json", json.dumps(MANIFEST).encode())
    package = save(tmp_path / "p", tar(manifest, manifest, entry("training_args.bin", b"pickle")))
    first, second = store.unpack(package), store.unpack(package)
    assert first == second
    assert (["training_args.bin"], 2) == ([member.name for member in second.skipped], len(second.notes))


@pytest.mark.parametrize(
    "kind", ["cut", "gone", "no index", "index of nothing", "index of another", "newer index"]
)
def test_damaged_package_is_unpacked_again(tmp_path: Path, store: Store, kind: str) -> None:
    """A cached file with another size, or an index that is no index, is noticed and replaced."""
    package = expert(tmp_path / "p.expert", base=BASE)
    first = store.unpack(package)
    index = first.root.parent / "index.json"
    match kind:
        case "cut":
            (first.root / "manifest.json").write_bytes(b"{")
        case "gone":
            (first.root / "onnx" / "adapter.safetensors").unlink()
        case "no index":
            index.unlink()
        case "index of nothing":
            index.write_bytes(b"{}")
        case "index of another":
            index.write_text(index.read_text().replace(first.sha256, "0" * 64))
        case _:
            index.write_text(index.read_text().replace('"format": 1', '"format": 2'))
    assert first == store.unpack(package)
    assert MANIFEST == json.loads((first.root / "manifest.json").read_bytes())
    assert (first.root / "onnx" / "adapter.safetensors").is_file()
    assert no_work_left(store)


def test_empty_store(store: Store) -> None:
    """A store that was never used has no bases and makes no folder."""
    assert (None, []) == (store.find_bundle(BASE_DIGEST), store.bundles())
    assert not store.root.exists()


def test_no_manifest(tmp_path: Path, store: Store) -> None:
    """A package without a manifest at its top is refused."""
    write(tmp_path / "p.expert", [("folder/manifest.json", b"{}")])
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        store.unpack(tmp_path / "p.expert")
    assert not (store.root / "packages").exists()
    assert no_work_left(store)


def test_limits_and_progress_reach_the_archive(tmp_path: Path, store: Store) -> None:
    """Limits and progress are handed on; a package already unpacked reports no progress."""
    package = expert(tmp_path / "p.expert", base=BASE)
    with pytest.raises(IntegrityError, match="max_members"):
        store.unpack(package, limits=Limits(max_members=1))
    steps: list[int] = []
    store.unpack(package, progress=steps.append)
    store.unpack(package, progress=steps.append)
    assert package.stat().st_size == sum(steps)


def test_package_that_changes_while_it_is_read(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is not the one that was hashed is refused."""
    package = expert(tmp_path / "p.expert", base=BASE)
    monkeypatch.setattr(store_module, "sha256_file", lambda _path: "0" * 64)
    with pytest.raises(IntegrityError, match="changed"):
        store.unpack(package)
    assert not (store.root / "packages").exists()


def test_open_file(tmp_path: Path, store: Store) -> None:
    """Opening a file unpacks it."""
    package = expert(tmp_path / "p.expert", base=BASE)
    assert store.unpack(package) == open_package(package, store)


def test_open_folder(tmp_path: Path, store: Store) -> None:
    """Opening a folder uses it in place and leaves the store alone."""
    folder = tmp_path / "folder"
    (folder / "onnx").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    thin = open_package(folder, store)
    assert (folder, "", None, None) == (thin.root, thin.sha256, thin.adapter, thin.bundle)
    for name in ("decoder.json", "adapter.safetensors"):
        (folder / "onnx" / name).write_bytes(b"x")
    expected = UnpackedPackage(
        root=folder,
        sha256="",
        adapter=folder / "onnx" / "adapter.safetensors",
        bundle=folder / "onnx",
        members=(),
        skipped=(),
        notes=(),
    )
    assert expected == open_package(folder, store)
    assert not store.root.exists()


def test_open_folder_without_manifest(tmp_path: Path, store: Store) -> None:
    """A folder without a manifest is no package."""
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        open_package(tmp_path, store)


def test_open_nothing(tmp_path: Path, store: Store) -> None:
    """A path that is neither file nor folder is a LoadError that says what to do."""
    with pytest.raises(LoadError, match="check the path"):
        open_package(tmp_path / "nowhere.expert", store)
    with pytest.raises(LoadError, match="check the path"):
        store.unpack(tmp_path / "nowhere.expert")


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    """A store below a file is a LoadError that names the variable to set."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        Store(tmp_path / "file" / "store").unpack(expert(tmp_path / "p.expert"))


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"HIVELLM_HOME": "/h"}, "/h"),
        ("linux", {"HIVELLM_HOME": "~/h"}, "/home/u/h"),
        ("linux", {}, "/home/u/.cache/hivellm/ort"),
        ("linux", {"XDG_CACHE_HOME": "/x", "HIVELLM_HOME": ""}, "/x/hivellm/ort"),
        ("linux", {"XDG_CACHE_HOME": "x"}, "/home/u/.cache/hivellm/ort"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/u/Library/Caches/hivellm/ort"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/hivellm/ort"),
        ("win32", {}, "/home/u/AppData/Local/hivellm/ort"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
def test_default_root(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    """The cache folder follows the platform, and HIVELLM_HOME before all."""
    for name in ("HIVELLM_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Path(expected) == default_root()
    assert Path(expected) == Store().root


@pytest.mark.parametrize(
    "package", sorted(HIVELLM.glob("packages/*.expert")) or [None], ids=lambda path: path and path.stem
)
def test_published_packages_unpack(store: Store, package: Path | None) -> None:
    """Packages of the reference packager unpack as thin packages without a prepared adapter."""
    if package is None:
        pytest.skip("the published packages are not here")
    unpacked = store.unpack(package)
    assert (None, None) == (unpacked.adapter, unpacked.bundle)
    assert unpacked == store.unpack(package)
