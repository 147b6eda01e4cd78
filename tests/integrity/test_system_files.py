"""Files that macOS and Windows add to a signed package: no signature need cover them, and nothing reads them."""

# The expected value comes first.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integrity_samples import (
    CONTENTS,
    KEYS,
    MANIFEST,
    SEED,
    Files,
    archive,
    folder,
    member,
    native,
    reference,
    signed_by_description,
)

from hivellm_ort.contract import Architecture, DecoderConfig
from hivellm_ort.errors import AdapterError, IntegrityError, LoadError
from hivellm_ort.integrity.native import signed_manifest
from hivellm_ort.integrity.signing import sign
from hivellm_ort.integrity.verification import verify
from hivellm_ort.loading.adapter_files import find_adapter_files
from hivellm_ort.loading.grammars import find_grammar
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.store import Store, open_package

ADDED = {
    "._README.md": b"apple",
    "tests/.DS_Store": b"finder",
    "Thumbs.db": b"explorer",
    "desktop.ini": b"[.Shell]",
}


@pytest.fixture(params=[native, reference], ids=["hivellm-ort/1", "expert-cli"])
def signer(request: pytest.FixtureRequest) -> Any:
    """Makes the files of a signed package of some contents."""
    return request.param


def _in_archive(path: Path, files: Files) -> str:
    opened = open_package(archive(path.with_suffix(".expert"), files), Store(path / "store"))
    return str(verify(opened, KEYS))


def _in_folder(path: Path, files: Files) -> str:
    return str(verify(folder(path / "folder", files), KEYS))


@pytest.fixture(params=[_in_archive, _in_folder], ids=["archive", "folder"])
def verdict(request: pytest.FixtureRequest) -> Any:
    """Gives the verdict on files in an archive or in a folder opened in place."""
    return request.param


def test_verifies_with_what_was_added(tmp_path: Path, signer: Any, verdict: Any) -> None:
    """A signed package verifies after macOS packed it again, or Finder looked into it."""
    assert "verified by publisher" == verdict(tmp_path, {**signer(), **ADDED})


@pytest.mark.parametrize("name", ["README2.md", "._x.d/a", "x.sh", ".DS_Store.json", "._README.md/a"])
def test_other_files_still_fail(tmp_path: Path, signer: Any, verdict: Any, name: str) -> None:
    """A file of any other name that was added is found."""
    assert f"failed: {name!r} was added after signing" == verdict(tmp_path, {**signer(), name: b"x"})


def test_listed_ones_are_checked(tmp_path: Path, signer: Any, verdict: Any) -> None:
    """A file that the signature lists is compared, even a system file."""
    files = signer({**CONTENTS, "._README.md": b"apple"})
    assert "verified by publisher" == verdict(tmp_path / "good", files)
    changed = {**files, "._README.md": b"appla"}
    assert "failed: '._README.md' was changed after signing" == verdict(tmp_path / "changed", changed)
    del files["._README.md"]
    assert "failed: '._README.md' was signed and is missing" == verdict(tmp_path / "missing", files)


def test_the_message_has_the_listed_ones_only(tmp_path: Path, verdict: Any) -> None:
    """By the scheme's description a listed system file is a line of the message, one that was added is none."""
    files = signed_by_description({}, {**CONTENTS, ".DS_Store": b"finder"})
    assert "verified by publisher" == verdict(tmp_path, {**files, "._README.md": b"apple"})


def test_signing_leaves_them_out(tmp_path: Path) -> None:
    """A package is signed without what macOS and Windows added, and a note says so."""
    package = archive(
        tmp_path / "p.expert", {"manifest.json": json.dumps(MANIFEST).encode(), **CONTENTS, **ADDED}
    )
    (tmp_path / "k.key").write_bytes(SEED)
    signed = sign(package, tmp_path / "k.key", publisher="Publisher")
    assert (1 + len(CONTENTS), [True]) == (signed.members, ["._README.md" in note for note in signed.notes])
    opened = open_package(package, Store(tmp_path / "store"))
    assert ("verified", ()) == (verify(opened, KEYS).status, opened.skipped)


def _signed_folder(path: Path, manifest: dict[str, Any], added: Files) -> Path:
    contents = {name: data for name, data in CONTENTS.items() if not name.startswith("adapter")}
    text = signed_manifest(
        manifest,
        [member(*each) for each in contents.items()],
        SEED,
        publisher="P",
        created_at="2026-11-22T09:40:30Z",
    )
    opened = folder(path, {"manifest.json": text, **contents, **added})
    assert "verified" == verify(opened, KEYS).status
    return path


def test_no_grammar_is_read_from_one(tmp_path: Path) -> None:
    """A manifest that names a system file as its grammar does not have it read: it was not signed."""
    decoding = {"use_grammar": True, "grammar_file": "._grammar.gbnf"}
    manifest = {**MANIFEST, "training": {"decoding": decoding}}
    root = _signed_folder(tmp_path / "p", manifest, {"._grammar.gbnf": b'root ::= "a"'})
    opened = open_package(root, Store(tmp_path / "store"))
    with pytest.raises(LoadError, match="which is not in the package"):
        find_grammar(opened, ExpertManifest.from_file(root / "manifest.json"))


def test_no_adapter_is_read_from_one(tmp_path: Path) -> None:
    """A manifest that names a system file as its adapter does not have it read."""
    base = {"name": "b", "adapters": [{"type": "lora", "path": "._a.safetensors"}]}
    root = _signed_folder(
        tmp_path / "p", {**MANIFEST, "base_models": [base]}, {"._a.safetensors": b"weights"}
    )
    (root / "adapter_config.json").write_bytes(b"{}")
    read = ExpertManifest.from_file(root / "manifest.json")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing in"):
        find_adapter_files(open_package(root, Store(tmp_path / "store")), read, read.base_models[0])


def test_no_bundle_lists_one(tmp_path: Path) -> None:
    """A decoder.json that lists a system file is refused: in an archive it would be missing."""
    listed = {"._weights.bin": {"size": 1, "sha256": "ab" * 32}}
    numbers = Architecture("llama", 8, 16, 1, 2, 1, 4, 32, 64)
    config = DecoderConfig("tiny", numbers, "fp32", "cpu", (), source_sha256="0" * 64)
    document = {**json.loads(config.to_bytes()), "files": listed}
    (tmp_path / "decoder.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"'\._weights\.bin' is not a file inside the bundle"):
        DecoderConfig.from_file(tmp_path / "decoder.json")
