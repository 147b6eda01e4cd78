"""Our own signature: fixed bytes, and nothing of a package can be changed under it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integrity_samples import (
    CONTENTS,
    KEYS,
    OTHER_SEED,
    SEED,
    archive,
    member,
    native,
    one_byte_changes,
    public,
    signed_by_description,
    status,
    tampered,
    unpacked,
    verdict,
)

from hivellm_ort.errors import ManifestError
from hivellm_ort.integrity.native import signed_manifest
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.store import Store

VERIFIED = Verdict(status="verified", key=public(), signer="publisher", scheme="hivellm-ort/1")


def test_golden() -> None:
    """A fixed key and fixed files give fixed bytes: other implementations depend on them."""
    text = native()["manifest.json"]
    assert (
        "80d5bf2203dd13e5716c2624c7ecdc253f626c0db42722530a99acc68fb64dd8"
        "f07ebf4517d569a99d517760dc0ee4f885b2a1a8bb849cbf82a38f0ce2250707"
    ) == json.loads(text)["integrity"]["signature"]
    assert (
        "fa61cf67c377c42bff42712b3d5c923bc4b4b06fb14baf81f8efad772ff53862" == hashlib.sha256(text).hexdigest()
    )


def test_message_is_as_described(tmp_path: Path) -> None:
    """A signature made from the description alone verifies."""
    contents = {"b.txt": b"B", "a/z": b"", "Z": b"zz", "ä": b"1", "\U0001f600": b"2", "\uffee": b"3"}
    assert VERIFIED == verdict(tmp_path, signed_by_description({}, contents))


def test_through_an_archive(tmp_path: Path) -> None:
    """Order and identical repetitions of members do not matter."""
    files = native()
    twice = [*reversed(files.items()), *files.items()]
    package = Store(tmp_path / "store").unpack(archive(tmp_path / "p.expert", twice))
    assert VERIFIED == verify(package, KEYS)


def test_other_keys(tmp_path: Path) -> None:
    """A valid signature by a key that is not pinned is unknown, and says which key it is."""
    files = native(seed=OTHER_SEED)
    expected = Verdict(status="unknown key", key=public(OTHER_SEED), scheme="hivellm-ort/1")
    assert expected == verdict(tmp_path, files)
    assert f"signed by unknown key {public(OTHER_SEED)[:24]}…" == str(expected)
    assert "verified by publisher" == str(verdict(tmp_path, native()))


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x2A])  # 2A swaps space and newline
def test_every_byte_of_the_manifest(tmp_path: Path, flip: int) -> None:
    """No byte of the manifest can change; without the key `integrity` the package is unsigned."""
    files = native()
    text = files["manifest.json"]
    block = text.index(b'"integrity"') + 1
    for position, changed in one_byte_changes(text, range(len(text)), flip):
        found = status(tmp_path, {**files, "manifest.json": changed})
        allowed = {"unsigned"} if block <= position < block + 9 else {"failed", "unreadable"}
        assert found in allowed, (position, changed[position - 10 : position + 10])


def test_inserted_and_deleted_bytes(tmp_path: Path) -> None:
    """White space that JSON does not care about cannot come or go either."""
    files = native()
    text = files["manifest.json"]
    block = range(text.index(b'"integrity"') + 1, text.index(b'"integrity"') + 11)
    for position in range(len(text) + 1):
        for changed in (text[:position] + b" " + text[position:], text[:position] + text[position + 1 :]):
            if changed != text and position not in block:
                found = status(tmp_path, {**files, "manifest.json": changed})
                assert found in {"failed", "unreadable"}, (position, changed)


@pytest.mark.parametrize("change", tampered(native()))
def test_members(tmp_path: Path, change: str) -> None:
    """No file can be added, removed, renamed, moved or changed."""
    found = verdict(tmp_path, tampered(native())[change])
    assert ("failed", "hivellm-ort/1", None) == (found.status, found.scheme, found.key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("added", "'extra.txt' was added after signing"),
        ("removed", "'README.md' was signed and is missing"),
        ("grown", "'README.md' was changed after signing"),
    ],
)
def test_names_the_culprit(tmp_path: Path, change: str, reason: str) -> None:
    """The reason names the file."""
    assert f"failed: {reason}" == str(verdict(tmp_path, tampered(native())[change]))


@given(st.data())
def test_every_byte_of_the_members(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """No byte of any other member can change."""
    name = data.draw(st.sampled_from([name for name, content in CONTENTS.items() if content]))
    position = data.draw(st.integers(0, len(CONTENTS[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    root = tmp_path_factory.getbasetemp() / "bytes"
    [(_, changed)] = one_byte_changes(CONTENTS[name], [position], flip)
    assert "failed" == status(root, {**native(), name: changed})


def test_listed_with_the_change(tmp_path: Path) -> None:
    """A list that was changed along with its file is found by the signature."""
    files = native()
    digests = [hashlib.sha256(data).hexdigest().encode() for data in (CONTENTS["README.md"], b"other")]
    files["manifest.json"] = files["manifest.json"].replace(*digests)
    files["README.md"] = b"other"
    assert "failed: manifest.json or the signature in it was changed after signing" == str(
        verdict(tmp_path, files)
    )


def test_signature_of_another_package(tmp_path: Path) -> None:
    """A signature cannot be moved to another package of the same publisher."""
    other = native({**CONTENTS, "README.md": b"other"})["manifest.json"]
    assert "failed" == status(tmp_path, {**native(), "manifest.json": other})
    files = native()
    files["manifest.json"] = files["manifest.json"][:-136] + other[-136:]
    assert "failed" == status(tmp_path, files)


def test_upper_case_hex(tmp_path: Path) -> None:
    """Hex digits in upper case are refused, even if the value is the same."""
    files = native()
    text = files["manifest.json"]
    files["manifest.json"] = text[:-136] + text[-136:-8].upper() + text[-8:]
    assert "failed" == status(tmp_path, files)


@pytest.mark.parametrize(
    "fields",
    [
        {"files": None},
        {"files": []},
        {"files": {"README.md": 5}},
        {"files": {"README.md": "x" * 1_000_000}},
        {"files": {"\ud800": "0" * 64}},
        {"files": {}},
        {"pubkey": None},
        {"pubkey": 52},
        {"pubkey": public().upper()},
        {"pubkey": "ed25519:" + "g" * 64},
        {"pubkey": "ed25519:" + "\u0660" * 64},
        {"pubkey": public()[8:]},
        {"pubkey": public(OTHER_SEED)},
        {"pubkey": "ed25519:" + "0" * 64},
        {"created_at": "yesterday"},
        {"created_at": "2026-11-22T09:40:30+00:00"},
        {"publisher": {}},
        {"signature_algorithm": "rsa"},
        {"scheme": "hivellm-ort/2"},
        {"scheme": ["hivellm-ort/1"]},
        {"scheme": None},
        {"more": 1},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
def test_malformed_fields(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A field of the wrong type or form fails with a reason, though its bytes are signed."""
    assert VERIFIED == verdict(tmp_path, signed_by_description({}, CONTENTS))
    found = verdict(tmp_path, signed_by_description(fields, CONTENTS))
    assert ("failed", None) == (found.status, found.key)
    assert found.reason
    assert len(found.reason) < 200


@pytest.mark.parametrize("value", [None, "", 0, "0" * 128, ["0" * 128], "g" * 128])
def test_malformed_signatures(tmp_path: Path, value: Any) -> None:
    """A malformed signature fails."""
    files = native()
    text = json.loads(files["manifest.json"])
    text["integrity"]["signature"] = value
    files["manifest.json"] = (json.dumps(text, indent=2, ensure_ascii=False) + "\n").encode()
    assert "failed" == status(tmp_path, files)


def test_block_must_be_last(tmp_path: Path) -> None:
    """An integrity block that is not the end of the manifest is refused."""
    files = native()
    manifest = json.loads(files["manifest.json"])
    block = manifest.pop("integrity")
    for moved in (
        {"integrity": block, **manifest},
        {**manifest, "integrity": block, "last": {"signature": block["signature"]}},
        {**manifest, "integrity": dict(reversed(block.items()))},
    ):
        files["manifest.json"] = (json.dumps(moved, indent=2, ensure_ascii=False) + "\n").encode()
        found = verdict(tmp_path, files)
        assert "manifest.json does not end with an integrity block as hivellm-ort/1 writes it" == found.reason


def test_manifest_changed_in_the_cache(tmp_path: Path) -> None:
    """A manifest that is not the unpacked one fails, even if it is signed itself."""
    package = unpacked(tmp_path, native())
    (tmp_path / "manifest.json").write_bytes(native({})["manifest.json"])
    assert "manifest.json was changed after it was unpacked" == verify(package, KEYS).reason


_text = st.text(st.characters(codec="utf-8"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(_text, values, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(_text, _json, max_size=4), _text)
def test_any_manifest(
    tmp_path_factory: pytest.TempPathFactory, manifest: dict[str, Any], publisher: str
) -> None:
    """Whatever a manifest holds, it is kept and its signature verifies."""
    members = [member(name, data) for name, data in CONTENTS.items()]
    text = signed_manifest(manifest, members, SEED, publisher=publisher, created_at="2026-01-01T00:00:00Z")
    manifest.pop("integrity", None)
    written = json.loads(text)
    assert publisher == written.pop("integrity")["publisher"]
    assert manifest == written
    root = tmp_path_factory.getbasetemp() / "any"
    assert "verified" == status(root, {"manifest.json": text, **CONTENTS})


def test_cannot_be_written() -> None:
    """Half of a surrogate pair is a typed error."""
    with pytest.raises(ManifestError, match="surrogate"):
        signed_manifest({"name": "\ud800"}, [], SEED, publisher="p", created_at="")
