"""Packages with bases for several targets: what they share is there once, and each base is whole."""

# The expected value comes first.

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from package_samples import MANIFEST, NOISE, bundle, decoder_json, files_under, no_work_left
from store_samples import assert_whole

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.package.archive import Limits, write
from hivellm_ort.package.bundle_folders import MAX_TARGETS
from hivellm_ort.package.members import list_bundle_members
from hivellm_ort.package.store import Store, open_package

Files = dict[str, bytes]


def base_for(target: str, weights: bytes = b"weights", **others: bytes) -> Files:
    """A base of three files and more, with the decoder.json that lists them and names its target."""
    files = {**bundle(weights), **{name.replace("_", "."): data for name, data in others.items()}}
    del files["decoder.json"]
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return {"decoder.json": decoder_json(listed, target=target), **files}


CPU = base_for("cpu", decoder_onnx=b"graph for cpu")
DML = base_for("dml", b"halves", decoder_onnx=b"graph for dml")
PORTABLE = base_for("portable", b"halves", decoder_onnx=b"standard")
MANIFEST_BYTES = json.dumps(MANIFEST).encode()


def package_files() -> Files:
    """The members of a package for three targets: the tokenizer is the first's, weights are the second's."""
    shared = {"tokenizer.json", "weights.bin"}
    return {
        "manifest.json": MANIFEST_BYTES,
        "onnx/adapter.safetensors": b"adapter",
        **{f"onnx/cpu/{name}": data for name, data in CPU.items()},
        **{f"onnx/dml/{name}": data for name, data in DML.items() if name != "tokenizer.json"},
        **{f"onnx/portable/{name}": data for name, data in PORTABLE.items() if name not in shared},
    }


def packed(path: Path, files: Files) -> Path:
    """Write members as a package."""
    write(path, list(files.items()))
    return path


def unfolded(folder: Path, files: Files) -> Path:
    """Write members as files of a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def digest(files: Files) -> str:
    """Of a base."""
    return hashlib.sha256(files["decoder.json"]).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def test_each_base_is_whole(tmp_path: Path, store: Store) -> None:
    """Every target has its base among the store's, with files that were in the archive once."""
    unpacked = store.unpack(packed(tmp_path / "p.expert", package_files()))
    expected = [store.root / "bases" / digest(files) for files in (CPU, DML, PORTABLE)]
    assert expected == [*unpacked.bundles]
    assert [CPU, DML, PORTABLE] == [files_under(folder) for folder in unpacked.bundles]
    own = {"manifest.json": MANIFEST_BYTES, "onnx/adapter.safetensors": b"adapter"}
    assert own == files_under(unpacked.root)
    assert ["adapter.safetensors"] == [path.name for path in (unpacked.root / "onnx").iterdir()]
    assert [*package_files()] == [member.name for member in unpacked.members]
    assert unpacked == store.unpack(tmp_path / "p.expert", check="digest")
    assert expected == [store.gather_bundle(folder, unpacked) for folder in unpacked.bundles]
    assert_whole(store.root)
    assert no_work_left(store)


def test_equal_files_are_on_the_disk_once(tmp_path: Path, store: Store) -> None:
    """A file that targets share has one blob and is stored once."""
    cpu, dml, portable = store.unpack(packed(tmp_path / "p.expert", package_files())).bundles
    assert (cpu / "tokenizer.json").samefile(portable / "tokenizer.json")
    assert (dml / "weights.bin").samefile(portable / "weights.bin")
    assert not (cpu / "weights.bin").samefile(dml / "weights.bin")
    contents = {hashlib.sha256(data).hexdigest() for data in package_files().values()}
    assert contents == {path.name for path in (store.root / "blobs").iterdir()}


def test_without_hard_links(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, a file that targets share is copied."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    unpacked = store.unpack(packed(tmp_path / "p.expert", package_files()))
    assert [CPU, DML, PORTABLE] == [files_under(folder) for folder in unpacked.bundles]
    assert_whole(store.root)


def test_a_base_is_shared_with_other_packages(tmp_path: Path, store: Store) -> None:
    """The base of one target is that of a package which has it alone."""
    alone = {"manifest.json": b"{}", **{f"onnx/{name}": data for name, data in DML.items()}}
    (first,) = store.unpack(packed(tmp_path / "1.expert", alone)).bundles
    stamp = first.stat().st_ino
    unpacked = store.unpack(packed(tmp_path / "2.expert", package_files()))
    assert (first, stamp) == (unpacked.bundles[1], unpacked.bundles[1].stat().st_ino)
    assert [CPU, DML, PORTABLE] == [files_under(folder) for folder in unpacked.bundles]


def test_a_target_may_bring_all_its_files(tmp_path: Path, store: Store) -> None:
    """A file that is there twice is no fault."""
    files = package_files() | {f"onnx/portable/{name}": data for name, data in PORTABLE.items()}
    unpacked = store.unpack(packed(tmp_path / "p.expert", files))
    assert [CPU, DML, PORTABLE] == [files_under(folder) for folder in unpacked.bundles]
    assert_whole(store.root)


def relisted(files: Files, name: str, data: bytes) -> bytes:
    """The decoder.json of a base with another size and digest for one file."""
    document = json.loads(files["decoder.json"])
    document["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(document).encode()


def _tampered(kind: str) -> Files:
    files = package_files()
    match kind:
        case "shared file":
            files["onnx/cpu/tokenizer.json"] = b"[]"
        case "shared file and the list beside it":
            files["onnx/cpu/tokenizer.json"] = b"[]"
            files["onnx/cpu/decoder.json"] = relisted(CPU, "tokenizer.json", b"[]")
        case "own file":
            files["onnx/portable/decoder.onnx"] = b"Standard"
        case "the list of a target":
            files["onnx/portable/decoder.json"] = relisted(PORTABLE, "tokenizer.json", b"[]")
        case "shared file missing":
            del files["onnx/dml/weights.bin"]
        case "file of no list":
            files["onnx/dml/custom_op.onnx"] = b"x"
        case "file of no target":
            files["onnx/custom_op.onnx"] = b"x"
        case "folder of no target":
            files["onnx/more/decoder.onnx"] = b"x"
        case "one base beside targets":
            files |= {f"onnx/{name}": data for name, data in CPU.items()}
        case "folder called otherwise":
            files["onnx/dml/decoder.json"] = PORTABLE["decoder.json"]
        case "name that leaves the folder":
            files["onnx/dml/decoder.json"] = relisted(DML, "../cpu/decoder.onnx", CPU["decoder.onnx"])
        case "target in a target":
            files |= {f"onnx/cpu/dml/{name}": data for name, data in DML.items() if name != "weights.bin"}
    return files


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shared file", r"onnx/cpu/ file 'tokenizer\.json' differs from the SHA-256"),
        (
            "shared file and the list beside it",
            r"onnx/dml/ file 'tokenizer\.json' is listed .* but not in the",
        ),
        ("own file", r"onnx/portable/ file 'decoder\.onnx' differs from the SHA-256"),
        (
            "the list of a target",
            r"onnx/portable/ file 'tokenizer\.json' is listed .* but not in the package",
        ),
        ("shared file missing", r"onnx/dml/ file 'weights\.bin' is listed .* but not in the package"),
        ("file of no list", r"onnx/ file 'dml/custom_op\.onnx' is not listed"),
        ("file of no target", r"onnx/ file 'custom_op\.onnx' is not listed"),
        ("folder of no target", r"onnx/ file 'more/decoder\.onnx' is not listed"),
        ("one base beside targets", r"onnx/ file 'cpu/decoder\.json' is not listed"),
        ("folder called otherwise", r"onnx/dml/ decoder\.json is for target 'portable'"),
        (
            "name that leaves the folder",
            r"onnx/dml/ decoder\.json: .*'\.\./cpu/decoder\.onnx' is not a file inside",
        ),
        ("target in a target", r"onnx/ file 'cpu/dml/decoder\.json' is not listed"),
    ],
)
def test_tampered(tmp_path: Path, store: Store, kind: str, message: str) -> None:
    """Whatever was changed is refused by name, and nothing is stored."""
    with pytest.raises(IntegrityError, match=r"p\.expert: .*" + message):
        store.unpack(packed(tmp_path / "p.expert", _tampered(kind)))
    assert [] == store.bundles()
    assert not (store.root / "packages").exists()
    assert no_work_left(store)


@pytest.mark.parametrize("value", [None, 1, ""])
def test_target_that_is_not_said(tmp_path: Path, store: Store, value: Any) -> None:
    """Of several bases each must say its target."""
    document = {**json.loads(CPU["decoder.json"]), "target": value}
    files = package_files() | {"onnx/cpu/decoder.json": json.dumps(document).encode()}
    with pytest.raises(ManifestError, match=r"onnx/cpu/ decoder\.json.*: /target"):
        store.unpack(packed(tmp_path / "p.expert", files))


def test_number_of_targets(tmp_path: Path, store: Store) -> None:
    """The number of bundles is limited, whatever their sizes."""
    files = {"manifest.json": b"{}"}
    for number in range(MAX_TARGETS):
        files |= {f"onnx/t{number}/{name}": data for name, data in base_for(f"t{number}").items()}
    assert MAX_TARGETS == len(store.unpack(packed(tmp_path / "most.expert", files)).bundles)
    files |= {f"onnx/more/{name}": data for name, data in base_for("more").items()}
    with pytest.raises(IntegrityError, match=f"has {MAX_TARGETS + 1} bundles; {MAX_TARGETS} is the most"):
        store.unpack(packed(tmp_path / "more.expert", files))


def test_shared_files_count_for_each_target(tmp_path: Path, store: Store) -> None:
    """A small archive cannot take more space by listing one file for many targets, if links are copies."""
    bases = {target: base_for(target, NOISE) for target in ("a", "b", "c")}
    files = {"manifest.json": b"{}", **{f"onnx/a/{name}": data for name, data in bases["a"].items()}}
    files |= {f"onnx/{target}/decoder.json": bases[target]["decoder.json"] for target in ("b", "c")}
    package = packed(tmp_path / "p.expert", files)
    assert 3 == len(store.unpack(package).bundles)
    limits = Limits(max_total_bytes=2 * len(NOISE))
    with pytest.raises(IntegrityError, match="max_total_bytes"):
        Store(tmp_path / "other").unpack(package, limits=limits)


def test_damage_to_the_base_of_one_target(tmp_path: Path, store: Store) -> None:
    """The package is damaged with any of its bases, and unpacking heals it."""
    package = packed(tmp_path / "p.expert", package_files())
    folder = store.unpack(package).bundles[2]
    (folder / "decoder.onnx").write_bytes(b"cut")
    entry = store.listing().entries[0]
    assert "its base: 'decoder.onnx' has 3 bytes, recorded are 8" == entry.fault
    assert tuple(digest(files) for files in (CPU, DML, PORTABLE)) == entry.bases
    store.unpack(package)
    assert PORTABLE == files_under(folder)
    assert_whole(store.root)


def test_all_bases_are_used_with_the_package(tmp_path: Path, store: Store) -> None:
    """Pruning by age keeps the bases of a package that is in use, and removes them with it."""
    unpacked = store.unpack(packed(tmp_path / "p.expert", package_files()))
    old = time.time() - 10 * 24 * 60 * 60
    for folder in unpacked.bundles:
        os.utime(folder, (old, old))
    assert [] == store.prune(unused_days=9)
    os.utime(unpacked.root.parent, (old, old))
    assert ["package", "base", "base", "base"] == [entry.kind for entry in store.prune(unused_days=9)]
    assert [] == list((store.root / "blobs").iterdir())


def test_index_of_an_older_version(tmp_path: Path, store: Store) -> None:
    """A package that an older version unpacked is unpacked again."""
    package = packed(tmp_path / "p.expert", package_files())
    unpacked = store.unpack(package)
    index = unpacked.root.parent / "index.json"
    document = json.loads(index.read_bytes())
    index.write_text(json.dumps({**document, "format": 1, "bundle": document["bundles"][0]}))
    assert unpacked == store.unpack(package)
    assert document == json.loads(index.read_bytes())


def test_index_that_leads_elsewhere(tmp_path: Path, store: Store) -> None:
    """An index is ignored if a base in it is not a digest."""
    package = packed(tmp_path / "p.expert", package_files())
    index = store.unpack(package).root.parent / "index.json"
    document = json.loads(index.read_bytes())
    index.write_text(json.dumps({**document, "bundles": ["../../somewhere"]}))
    assert "index.json is missing or damaged" == store.listing().entries[0].fault
    assert 3 == len(store.unpack(package).bundles)


def test_folder_in_place(tmp_path: Path, store: Store) -> None:
    """A base with all its files is used in place. One that shares files is copied to the store, not linked."""
    folder = unfolded(tmp_path / "folder", package_files())
    package = open_package(folder, store, check="digest")
    assert tuple(folder / "onnx" / name for name in ("cpu", "dml", "portable")) == package.bundles
    assert not store.root.exists()
    cpu, _, portable = package.bundles
    assert cpu == store.gather_bundle(cpu, package)
    assert not store.root.exists()
    gathered = store.gather_bundle(portable, package)
    assert (store.root / "bases" / digest(PORTABLE), PORTABLE) == (gathered, files_under(gathered))
    (folder / "onnx/dml/weights.bin").write_bytes(b"HALVES")
    assert PORTABLE == files_under(store.gather_bundle(portable, package))
    assert_whole(store.root)
    assert no_work_left(store)


def test_change_in_a_folder(tmp_path: Path, store: Store) -> None:
    """A shared file that is missing, cut or changed is found before anything is copied."""
    folder = unfolded(tmp_path / "folder", package_files())
    package = open_package(folder, store)
    shared = folder / "onnx/dml/weights.bin"
    shared.write_bytes(b"HALVES")
    with pytest.raises(IntegrityError, match=r"dml: file 'weights\.bin', listed in decoder\.json, differs"):
        store.gather_bundle(package.bundles[2], package)
    shared.write_bytes(b"half")
    with pytest.raises(IntegrityError, match=r"file 'weights\.bin', .* has 4 bytes"):
        open_package(folder, store)
    shared.unlink()
    with pytest.raises(
        IntegrityError, match=r"dml: file 'weights\.bin', listed in decoder\.json, is missing"
    ):
        open_package(folder, store)
    (folder / "onnx/cpu/decoder.json").write_bytes(b"{")
    with pytest.raises(ManifestError, match=r"folder/onnx: onnx/cpu/ decoder\.json"):
        open_package(folder, store)
    assert not store.root.exists()


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    """Where a base has to be copied and cannot, the message names the variable to set."""
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    package = open_package(unfolded(tmp_path / "folder", package_files()), store)
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        store.gather_bundle(package.bundles[2], package)


def test_packing_leaves_out_what_is_there(tmp_path: Path) -> None:
    """Equal files of bases are packed once. Packing the unpacked result again changes nothing."""
    for target, files in (("cpu", CPU), ("dml", DML), ("portable", PORTABLE)):
        unfolded(tmp_path / "bases" / target, files)
    folders = [tmp_path / "bases" / target for target in ("cpu", "dml", "portable")]
    members = {name: Path(str(data)).read_bytes() for name, data in list_bundle_members(folders)}
    expected = {name: data for name, data in package_files().items() if name.count("/") == 2}
    assert expected == members
    assert [f"onnx/{target}/decoder.json" for target in ("cpu", "dml", "portable")] == [
        name for name in members if name.endswith("decoder.json")
    ]
    unfolded(tmp_path / "folder", members)
    again = [tmp_path / "folder/onnx" / target for target in ("cpu", "dml", "portable")]
    assert list(members) == [name for name, _ in list_bundle_members(again)]


def test_packing_one_target(tmp_path: Path, store: Store) -> None:
    """One base is packed in onnx/ itself, whatever its folder's name. Unlisted files are left out."""
    folder = unfolded(tmp_path / "any", {**CPU, "notes.txt": b"mine"})
    members = dict(list_bundle_members([folder]))
    names = ["decoder.json", "decoder.onnx", "tokenizer.json", "weights.bin"]
    assert [f"onnx/{name}" for name in names] == list(members)
    write(tmp_path / "p.expert", [("manifest.json", b"{}"), *members.items()])
    assert CPU == files_under(store.unpack(tmp_path / "p.expert").bundles[0])
