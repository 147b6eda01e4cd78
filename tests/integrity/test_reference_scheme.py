"""Packages signed by the reference tool's way of signing, written a second time for these tests."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from integrity_samples import (
    CONTENTS,
    KEYS,
    MANIFEST,
    OTHER_SEED,
    SEED,
    Files,
    archive,
    one_byte_changes,
    public,
    reference,
    status,
    tampered,
    verdict,
)
from support.signing import REFERENCE_TIME

from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.store import Store

VERIFIED = Verdict(status="verified", key=public(), signer="publisher", scheme="expert-cli")


def _measured(*names: str) -> dict[str, Any]:
    metrics = {name: 0.5 + index for index, name in enumerate(names)}
    return {**MANIFEST, "evaluation": {"test_set_size": 10, "metrics": metrics, "suite": None}}


def _last_first(names: Iterable[str]) -> list[str]:
    return list(names)[::-1]


def test_verifies(tmp_path: Path) -> None:
    """A package verifies against the pinned key, and is unknown without it."""
    assert VERIFIED == verdict(tmp_path, reference())
    unknown = verdict(tmp_path, reference(seed=OTHER_SEED))
    assert ("unknown key", public(OTHER_SEED)) == (unknown.status, unknown.key)


def test_skipped_members_count(tmp_path: Path) -> None:
    """A pickle that is never unpacked is still verified."""
    files = reference({**CONTENTS, "training_args.bin": b"pickle"})
    package = Store(tmp_path / "store").unpack(archive(tmp_path / "p.expert", files))
    assert ["training_args.bin"] == [member.name for member in package.skipped]
    assert VERIFIED == verify(package, KEYS)
    other = archive(tmp_path / "q.expert", {**files, "training_args.bin": b"Pickle"})
    assert "failed: 'training_args.bin' was changed after signing" == str(
        verify(Store(tmp_path / "store").unpack(other), KEYS)
    )


def test_identical_repetitions(tmp_path: Path) -> None:
    """A member that comes twice with the same bytes is fine, as the packager writes README.md."""
    files = [*reference().items(), ("README.md", CONTENTS["README.md"])]
    package = Store(tmp_path / "store").unpack(archive(tmp_path / "p.expert", files))
    assert VERIFIED == verify(package, KEYS)


def test_sorts_by_utf8(tmp_path: Path) -> None:
    """Paths are sorted as UTF-8 bytes, not as UTF-16."""
    assert VERIFIED == verdict(tmp_path, reference({"\uffee": b"1", "\U0001f600": b"2", "Z": b"", "a": b"4"}))


@pytest.mark.parametrize(
    "created_at",
    ["2026-11-22T09:40:30+00:00", "2026-11-22T09:40:30.911+00:00", "2026-11-22T09:40:30.911600+00:00"],
)
def test_coarser_clocks(tmp_path: Path, created_at: str) -> None:
    """The signer writes as many digits of a second as its clock has."""
    assert VERIFIED == verdict(tmp_path, reference(created_at=created_at))


@pytest.mark.parametrize(
    "created_at",
    [
        "",
        "2026-11-22T09:40:30Z",
        "2026-11-22 09:40:30+00:00",
        "2026-11-22T09:40:30.9+00:00",
        "2026-11-22T09:40:30.911600831+01:00",
        "2026-11-22T09:40:30.911600831+00:00 ",
        "٢026-11-22T09:40:30+00:00",
        None,
        7,
    ],
)
def test_other_times(tmp_path: Path, created_at: Any) -> None:
    """The time is not signed, so only the signer's own form is accepted."""
    assert "failed" == status(tmp_path, reference(created_at=created_at))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_reordered_metrics(tmp_path: Path, count: int) -> None:
    """The signer forgets the order of the metrics; any order verifies."""
    names = [f'metric "{index}"' for index in range(count)]
    orders = list(itertools.permutations(names))
    for order in (orders[0], orders[-1], *random.Random(1).choices(orders, k=3)):
        files = reference(manifest=_measured(*names), reorder=lambda _, order=order: order)
        assert VERIFIED == verdict(tmp_path, files)


def test_more_metrics_than_tried(tmp_path: Path) -> None:
    """Seven metrics verify in their order only, as does a manifest too large to be tried."""
    many = _measured(*"abcdefg")
    assert VERIFIED == verdict(tmp_path, reference(manifest=many))
    assert "failed" == status(tmp_path, reference(manifest=many, reorder=_last_first))
    large = {**_measured("a", "b"), "tags": ["x" * 300_000]}
    assert VERIFIED == verdict(tmp_path, reference(manifest=large))
    assert "failed" == status(tmp_path, reference(manifest=large, reorder=_last_first))


def test_nothing_else_is_permuted(tmp_path: Path) -> None:
    """Only the lines of the metrics may change places, only whole, and only at the top level."""
    signed = reference(manifest=_measured("a", "b"))
    text = signed["manifest.json"]
    swapped = text.replace(b'"test_set_size": 10,\n    "metrics"', b'"test_set_size": 11,\n    "metrics"')
    assert text != swapped
    assert "failed" == status(tmp_path, {**signed, "manifest.json": swapped})
    changed = text.replace(b'"a": 0.5,\n      "b": 1.5', b'"b": 0.5,\n      "a": 1.5')
    assert text != changed
    assert "failed" == status(tmp_path, {**signed, "manifest.json": changed})
    nested = {**MANIFEST, "training": {"evaluation": {"metrics": {"a": 1.0, "b": 2.0}}}}
    signed = reference(manifest=nested)
    changed = signed["manifest.json"].replace(b'"a": 1.0,\n        "b": 2.0', b'"b": 2.0,\n        "a": 1.0')
    assert signed["manifest.json"] != changed
    assert "failed" == status(tmp_path, {**signed, "manifest.json": changed})


def _unsigned_digits(text: bytes) -> set[int]:
    """Where the digits of created_at are."""
    found = re.search(rb'"created_at": "([^"+]*)\+00:00"', text)
    assert found is not None
    return {found.start(1) + at for at, char in enumerate(found[1]) if chr(char).isdigit()}


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x2A])  # 2A swaps space and newline
def test_every_byte(tmp_path: Path, flip: int) -> None:
    """Changing any byte of the manifest or signature.sig fails, except the digits of created_at."""
    files = reference({"README.md": b"x"}, manifest=_measured("a", "b", "c"), reorder=_last_first)
    digits = _unsigned_digits(files["manifest.json"])
    assert 23 == len(digits)
    for name in ("manifest.json", "signature.sig"):
        for position, changed in one_byte_changes(files[name], range(len(files[name])), flip):
            found = status(tmp_path, {**files, name: changed})
            if name == "manifest.json" and position in digits and chr(changed[position]).isdigit():
                assert "verified" == found
            else:
                assert found in {"failed", "unreadable"}, (name, position, changed)


def test_inserted_and_deleted_bytes(tmp_path: Path) -> None:
    """No byte can come or go, white space included."""
    files = reference({"README.md": b"x"})
    for name in ("manifest.json", "signature.sig"):
        data = files[name]
        for position in range(len(data) + 1):
            for changed in (data[:position] + b" " + data[position:], data[:position] + data[position + 1 :]):
                if changed != data:
                    found = status(tmp_path, {**files, name: changed})
                    assert found in {"failed", "unreadable"}, (name, position, changed)


@pytest.mark.parametrize("change", [*tampered(reference()), "signature removed", "signature grown"])
def test_members(tmp_path: Path, change: str) -> None:
    """No file can be added, removed, renamed, moved or changed."""
    files = reference()
    signature = files["signature.sig"]
    bare = {name: data for name, data in files.items() if name != "signature.sig"}
    changes = {
        **tampered(files),
        "signature removed": bare,
        "signature grown": {**files, "signature.sig": signature + b"\n"},
    }
    found = verdict(tmp_path, changes[change])
    assert ("failed", "expert-cli", None) == (found.status, found.scheme, found.key)


def test_stripped_signature(tmp_path: Path) -> None:
    """The member signature.sig without an integrity block shows that the block was taken out."""
    files = reference()
    for block in (None, {}, {"signature": "x", "public_key": "y", "timestamp": "z"}):
        files["manifest.json"] = json.dumps({**MANIFEST, "integrity": block}).encode()
        assert (
            "failed: signature.sig is there, but its integrity block was taken out of manifest.json"
            == str(verdict(tmp_path, files))
        )


def test_signed_twice(tmp_path: Path) -> None:
    """A package that was signed twice fails and says why, whichever way it lists its old signature."""
    once = reference()
    contents = {name: data for name, data in once.items() if name != "manifest.json"}
    twice = reference(contents, manifest=json.loads(once["manifest.json"]))
    assert "failed: signed twice by expert-cli, which leaves nothing to verify the manifest by" == str(
        verdict(tmp_path, twice)
    )
    contents.pop("signature.sig")
    twice = reference(contents, manifest=json.loads(once["manifest.json"]))
    assert "failed: manifest.json is not the one that was signed: changed, or signed twice" == str(
        verdict(tmp_path, twice)
    )


def test_manifest_that_was_not_signed(tmp_path: Path) -> None:
    """A valid signature that does not list the manifest authenticates nothing."""
    digest = hashlib.sha256(b"x").hexdigest()
    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(f"README.md:{digest}".encode()).hex()
    block = {
        "created_at": REFERENCE_TIME,
        "publisher": "expert-cli",
        "pubkey": public(),
        "signature_algorithm": "ed25519",
        "signature": signature,
        "files": {"README.md": digest},
    }
    files = {
        "README.md": b"x",
        "signature.sig": signature.encode(),
        "manifest.json": json.dumps({**MANIFEST, "integrity": block}, indent=2).encode(),
    }
    assert "failed: manifest.json was not signed" == str(verdict(tmp_path, files))


def _with_block(files: Files, change: dict[str, Any]) -> Files:
    manifest = json.loads(files["manifest.json"])
    manifest["integrity"].update(change)
    return {**files, "manifest.json": _as_signed(manifest)}


def _as_signed(manifest: dict[str, Any]) -> bytes:
    try:
        return json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(manifest, indent=2).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"publisher": "HiveLLM"},
        {"publisher": None},
        {"signature_algorithm": "Ed25519"},
        {"pubkey": public()[8:]},
        {"pubkey": None},
        {"pubkey": 1},
        {"pubkey": ""},
        {"signature": ""},
        {"signature": "hex:" + "0" * 128},
        {"signature": [1, 2]},
        {"files": None},
        {"files": "README.md"},
        {"files": {}},
        {"files": {"README.md": None}},
        {"files": {"README.md": "sha256:" + "0" * 64}},
        {"files": {"../x": "0" * 64}},
        {"files": {"\ud800": "0" * 64}},
        {"files": {f"{index}": "0" * 64 for index in range(20_000)}},
        {"more": 1},
    ],
    ids=lambda change: ascii(change)[:40],
)
def test_malformed_blocks(tmp_path: Path, change: dict[str, Any]) -> None:
    """A malformed block fails with a short reason."""
    found = verdict(tmp_path, _with_block(reference(), change))
    assert ("failed", None) == (found.status, found.key)
    assert found.reason
    assert len(found.reason) < 200


def test_layout_of_the_block(tmp_path: Path) -> None:
    """The block is not signed as text, so only the signer's own layout of it is taken."""
    files = reference()
    manifest = json.loads(files["manifest.json"])
    assert files == {**files, "manifest.json": _as_signed(manifest)}
    first, *rest = manifest["integrity"].items()
    for other in (dict(reversed([first, *rest])), dict([*rest, first])):
        assert "failed" == status(
            tmp_path, {**files, "manifest.json": _as_signed({**manifest, "integrity": other})}
        )
    text = files["manifest.json"]
    for old, new in (
        (b'\n  "integrity": {', b'\n "integrity": {'),
        ("über".encode(), b"\\u00fcber"),
        (b'"ed25519",\n', b'"ed25519" ,\n'),
    ):
        assert old in text
        found = verdict(tmp_path, {**files, "manifest.json": text.replace(old, new)})
        assert "manifest.json: the integrity block is not written as expert-cli writes it" == found.reason


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (None, "unsigned: None"),
        ({}, "unsigned: the integrity block holds no signature"),
        ({"publisher": "x", "files": {}}, "unsigned: the integrity block holds no signature"),
        ({"pubkey": None, "signature": ""}, "unsigned: the integrity block holds no signature"),
        (
            {"timestamp": "t", "public_key": "k", "signature": "s"},
            "unsigned: the integrity block is of a form that defines no message",
        ),
        ({"timestamp": 1, "public_key": "k", "signature": "s"}, None),
        ({"signature": "s"}, "unsigned: the integrity block is of a form that defines no message"),
        ({"signature": 1}, None),
        ({"pubkey": "k"}, None),
        ({"scheme": "sigstore"}, None),
        ([], None),
        ("signed", None),
        (0, None),
        (True, None),
    ],
    ids=ascii,
)
def test_other_blocks(tmp_path: Path, block: Any, expected: str | None) -> None:
    """A package without a signature is unsigned. One that claims a signature without having it fails."""
    files = {"manifest.json": json.dumps({**MANIFEST, "integrity": block}).encode()}
    found = verdict(tmp_path, files)
    if expected is None:
        assert "failed" == found.status
    else:
        assert expected == f"{found.status}: {found.reason}"
        assert "unsigned" == str(found)
