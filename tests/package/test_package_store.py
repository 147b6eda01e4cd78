"""The store unpacks a package once, and opens folders in place."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import json
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
from hivellm_ort.package import unpacked as unpacked_module
from hivellm_ort.package.archive import ArchiveContents, Limits, write
from hivellm_ort.package.store import Store, UnpackedPackage, open_package


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
    assert (store.root / "bases" / BASE_DIGEST,) == unpacked.bundles
    assert BASE == files_under(store.root / "bases" / BASE_DIGEST)
    names = ["manifest.json", "onnx/adapter.safetensors", *(f"onnx/{name}" for name in BASE)]
    assert names == [member.name for member in unpacked.members]
    assert ["adapter.safetensors"] == [path.name for path in (root / "onnx").iterdir()]
    assert no_work_left(store)


def test_thin_package(tmp_path: Path, store: Store) -> None:
    """A package without a base or without an adapter says so."""
    thin = store.unpack(expert(tmp_path / "thin.expert"))
    assert (True, ()) == (thin.adapter is not None, thin.bundles)
    bare = store.unpack(expert(tmp_path / "bare.expert", adapter=None))
    assert (None, ()) == (bare.adapter, bare.bundles)
    base_only = store.unpack(expert(tmp_path / "base.expert", adapter=None, base=BASE))
    assert (None, (store.root / "bases" / BASE_DIGEST,)) == (base_only.adapter, base_only.bundles)


def test_second_time_is_found(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpacked package is found again without reading the archive, also by another store object."""
    package = expert(tmp_path / "p.expert", base=BASE)
    first = store.unpack(package)
    monkeypatch.setattr(unpacked_module, "extract", _never)
    assert first == store.unpack(package)
    assert first == store.unpack(package, check="digest")
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


def test_digests_of_files(tmp_path: Path, store: Store) -> None:
    """A package tells the digests of its files, as unpacked or read from a folder opened in place."""
    unpacked = store.unpack(expert(tmp_path / "p.expert", base=BASE))
    folder = open_package(unpacked.root, store)
    expected = hashlib.sha256(b"adapter").hexdigest()
    for package in (unpacked, folder):
        assert expected == package.digest(package.root / "onnx" / "adapter.safetensors")
    with pytest.raises(LoadError, match="nothing"):
        folder.digest(folder.root / "nothing")


def test_empty_store(store: Store) -> None:
    """A store that was never used has no bases and makes no folder."""
    assert (None, [], []) == (store.find_bundle(BASE_DIGEST), store.bundles(), store.models())
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
    assert (folder, "", None, ()) == (thin.root, thin.sha256, thin.adapter, thin.bundles)
    for name, data in {**BASE, "adapter.safetensors": b"x"}.items():
        (folder / "onnx" / name).write_bytes(data)
    expected = UnpackedPackage(
        root=folder,
        sha256="",
        adapter=folder / "onnx" / "adapter.safetensors",
        bundles=(folder / "onnx",),
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
    """A path that is neither a file nor a folder is a LoadError with a cure."""
    with pytest.raises(LoadError, match="check the path"):
        open_package(tmp_path / "nowhere.expert", store)
    with pytest.raises(LoadError, match="check the path"):
        store.unpack(tmp_path / "nowhere.expert")


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    """A store below a file is a LoadError that names the variable to set."""
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        store.unpack(expert(tmp_path / "p.expert"))
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        store.prepare_adapter("0" * 64, lambda: b"1")


def test_models(store: Store) -> None:
    """The user's bundles are found one and two levels below models/, sorted."""
    for name in ("b", "a/int8", "a/fp32", "c/d/e"):
        folder = store.root / "models" / name
        folder.mkdir(parents=True)
        (folder / "decoder.json").write_bytes(b"{}")
    models = store.root / "models"
    assert [models / "a" / "fp32", models / "a" / "int8", models / "b"] == store.models()


@pytest.mark.parametrize(
    "package", sorted(HIVELLM.glob("packages/*.expert")) or [None], ids=lambda path: path and path.stem
)
def test_published_packages_unpack(store: Store, package: Path | None) -> None:
    """Packages of the reference packager unpack as thin packages without a prepared adapter."""
    if package is None:
        pytest.skip("the published packages are not here")
    unpacked = store.unpack(package)
    assert (None, ()) == (unpacked.adapter, unpacked.bundles)
    assert unpacked == store.unpack(package, check="digest")
