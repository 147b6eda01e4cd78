"""Signing packages."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
from integrity_samples import (
    CONTENTS,
    KEYS,
    MANIFEST,
    SEED,
    archive,
    native,
    public,
    reference,
)

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.integrity.signing import sign
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.archive import Limits
from hivellm_ort.package.store import Store

UNSIGNED = {**CONTENTS, "manifest.json": json.dumps(MANIFEST).encode()}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key file."""
    path = tmp_path / "my.key"
    path.write_bytes(SEED)
    path.chmod(0o600)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unsigned package, its manifest last."""
    return archive(tmp_path / "p.expert", UNSIGNED)


def _names(package: Path) -> list[str]:
    with tarfile.open(package) as tar:
        return tar.getnames()


def test_in_place(tmp_path: Path, package: Path, key: Path) -> None:
    """The package is replaced by a signed one: the manifest first, the members as they were."""
    signed = sign(package, key, publisher="Publisher")
    assert (package, public(), 5, ()) == (signed.path, signed.key, signed.members, signed.notes)
    assert ["manifest.json", *CONTENTS] == _names(package)
    opened = Store(tmp_path / "store").unpack(package)
    assert "verified by publisher" == str(verify(opened, KEYS))
    for name, data in CONTENTS.items():
        assert data == (opened.root / name).read_bytes()
    manifest = json.loads((opened.root / "manifest.json").read_bytes())
    block = manifest.pop("integrity")
    assert {name: value for name, value in MANIFEST.items() if name != "integrity"} == manifest
    assert "Publisher" == block["publisher"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", block["created_at"])
    assert {"my.key", "p.expert", "store"} == {path.name for path in tmp_path.iterdir()}


def test_to_another_file(tmp_path: Path, package: Path, key: Path) -> None:
    """With an output the package itself stays as it is."""
    before = package.read_bytes()
    output = tmp_path / "signed.expert"
    assert output == sign(package, key, publisher="p", output=output).path
    assert before == package.read_bytes()
    assert "verified" == verify(Store(tmp_path / "store").unpack(output), KEYS).status


@pytest.mark.parametrize("old", [reference, native])
def test_replaces_a_signature(tmp_path: Path, key: Path, old: object) -> None:
    """An old signature of either scheme is replaced, even an invalid one."""
    files = reference() if old is reference else native()
    package = archive(tmp_path / "p.expert", {**files, "README.md": b"new"})
    signed = sign(package, key, publisher="p")
    expected = ["the old integrity block was replaced"]
    if old is reference:
        expected.insert(0, "signature.sig was left out: the signature is in manifest.json")
    assert expected == list(signed.notes)
    assert "signature.sig" not in _names(package)
    assert "verified" == verify(Store(tmp_path / "store").unpack(package), KEYS).status


def test_leaves_pickles_out(tmp_path: Path, key: Path) -> None:
    """Files that are never loaded are left out with a note, instead of being signed."""
    package = archive(tmp_path / "p.expert", {**UNSIGNED, "training_args.bin": b"pickle"})
    signed = sign(package, key, publisher="p")
    assert "training_args.bin" not in _names(package)
    assert [1] == [note.count("training_args.bin was left out") for note in signed.notes]
    assert "verified" == verify(Store(tmp_path / "store").unpack(package), KEYS).status


def test_progress(package: Path, key: Path) -> None:
    """Progress counts the bytes read and the bytes packed."""
    counts: list[int] = []
    size = package.stat().st_size
    sign(package, key, publisher="p", progress=counts.append)
    assert sum(counts) > size + sum(len(data) for data in CONTENTS.values())


@pytest.mark.parametrize("publisher", ["", " ", "x" * 201, "a\nb"])
def test_bad_publisher(package: Path, key: Path, publisher: str) -> None:
    """A publisher must be printable and short."""
    before = package.read_bytes()
    with pytest.raises(ValueError, match="give 1 to 200 printable characters"):
        sign(package, key, publisher=publisher)
    assert before == package.read_bytes()


def test_bad_input_changes_nothing(tmp_path: Path, package: Path, key: Path) -> None:
    """After an error the package is as it was and nothing else is left."""
    bare = archive(tmp_path / "bare.expert", {"README.md": b"x"})
    broken = archive(tmp_path / "broken.expert", {**UNSIGNED, "manifest.json": b"{"})
    deep: object = [0] * 90_000
    for _ in range(30):
        deep = {"a": deep}
    grows = archive(
        tmp_path / "grows.expert", {"manifest.json": json.dumps({**MANIFEST, "deep": deep}).encode()}
    )
    text = tmp_path / "text.expert"
    text.write_bytes(b"no archive")
    folder = tmp_path / "folder.expert"
    folder.mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for path, error in (
        (bare, ManifestError),
        (broken, ManifestError),
        (text, IntegrityError),
        (folder, LoadError),
        (tmp_path / "missing.expert", LoadError),
    ):
        with pytest.raises(error):
            sign(path, key, publisher="p")
    with pytest.raises(ManifestError, match=r"grows\.expert: manifest.json: larger than 4 MiB"):
        sign(grows, key, publisher="p", limits=Limits(max_ratio=10_000))
    with pytest.raises(IntegrityError, match="max_members"):
        sign(package, key, publisher="p", limits=Limits(max_members=2))
    with pytest.raises(LoadError, match="cannot be written"):
        sign(package, key, publisher="p", output=tmp_path / "missing" / "q.expert")
    with pytest.raises(IntegrityError, match="exactly 32 raw bytes"):
        sign(package, text, publisher="p")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert [] == list(folder.iterdir())
