"""The published packages that the reference tool signed."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest
from integrity_samples import HIVELLM, Files, archive, one_byte_changes, tampered, unpacked

from hivellm_ort.errors import ManifestError
from hivellm_ort.integrity.keyfiles import read_public_key
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.store import Store

_FOLDER = HIVELLM / "packages"
_NAMES = ("expert-json-signed.expert", "test-expert-v1-signed.expert")
pytestmark = pytest.mark.skipif(not _FOLDER.is_dir(), reason="no published packages beside the repository")


@pytest.fixture(params=_NAMES)
def package(request: pytest.FixtureRequest) -> Path:
    """One signed package."""
    return _FOLDER / str(request.param)


@pytest.fixture
def keys() -> dict[str, str]:
    """The publisher's key."""
    return {"hivellm": read_public_key(_FOLDER / "publisher.pub")}


def _files(package: Path) -> Files:
    with tarfile.open(package) as tar:
        return {info.name: _read(tar, info) for info in tar if info.isfile()}


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(info)
    assert isinstance(content, io.BufferedIOBase)
    return content.read()


def _status(root: Path, files: Files, keys: dict[str, str]) -> str:
    try:
        return verify(unpacked(root, files), keys).status
    except ManifestError:
        return "unreadable"


def test_verifies(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """It verifies against the publisher's key, and only against that."""
    opened = Store(tmp_path).unpack(package)
    expected = Verdict(status="verified", key=keys["hivellm"], signer="hivellm", scheme="expert-cli")
    assert expected == verify(opened, keys)
    assert "unknown key" == verify(opened, {"hivellm": "ed25519:" + "0" * 64}).status
    assert "verified" == _status(tmp_path / "files", _files(package), keys)


def test_every_byte_of_the_manifest(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """Changing any byte fails, except the digits of created_at, which are not signed."""
    files = _files(package)
    text = files["manifest.json"]
    found = re.search(rb'"created_at": "([^"+]*)\+00:00"', text)
    assert found is not None
    free = {at for at in range(*found.span(1)) if chr(text[at]).isdigit()}
    assert 23 == len(free)
    for position, changed in one_byte_changes(text, range(len(text))):
        expected = {"verified"} if position in free else {"failed", "unreadable"}
        assert _status(tmp_path, {**files, "manifest.json": changed}, keys) in expected, position


def test_every_byte_of_the_signature(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """No byte of signature.sig can change."""
    files = _files(package)
    signature = files["signature.sig"]
    for _, changed in one_byte_changes(signature, range(len(signature))):
        assert "failed" == _status(tmp_path, {**files, "signature.sig": changed}, keys)


def test_bytes_of_the_members(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """No byte of any other member can change; a hundred positions of each are tried."""
    files = _files(package)
    for name, data in files.items():
        if name not in ("manifest.json", "signature.sig"):
            for _, changed in one_byte_changes(data, range(0, len(data), max(1, len(data) // 100)), 0x80):
                assert "failed" == _status(tmp_path, {**files, name: changed}, keys)


def test_members(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """No file can be added, removed, renamed, moved or changed."""
    for change, files in tampered(_files(package)).items():
        assert "failed" == _status(tmp_path, files, keys), change


def test_tampered_archives(package: Path, keys: dict[str, str], tmp_path: Path) -> None:
    """The same holds for archives that the store unpacked."""
    for index, (change, files) in enumerate(tampered(_files(package)).items()):
        opened = Store(tmp_path / "store").unpack(archive(tmp_path / f"{index}.expert", files))
        assert "failed" == verify(opened, keys).status, change


@pytest.mark.parametrize("name", ["expert-json-qwen3-0-6b.v0.4.1", "test-expert-v1-qwen306b.v1.0.0"])
def test_unsigned(name: str, tmp_path: Path) -> None:
    """A published package without a signature is unsigned."""
    opened = Store(tmp_path).unpack(_FOLDER / f"{name}.expert")
    assert Verdict(status="unsigned") == verify(opened, {})
