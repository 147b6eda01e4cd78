"""What each policy does with each verdict."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from integrity_samples import (
    CONTENTS,
    KEYS,
    OTHER_SEED,
    Files,
    folder,
    native,
    public,
    unpacked,
)

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.integrity import trust as trust_module
from hivellm_ort.integrity.trust import Policy, Trust, check
from hivellm_ort.integrity.truststore import TrustStore

PACKAGES: dict[str, Files] = {
    "verified": native(),
    "unknown key": native(seed=OTHER_SEED),
    "unsigned": {"manifest.json": b'{"name": "x"}', **CONTENTS},
    "failed": {**native(), "README.md": b"other"},
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No warnings given yet, and no pinned keys of the user."""
    monkeypatch.setattr(trust_module, "_warned", set())
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("status", PACKAGES)
@pytest.mark.parametrize("policy", ["require", "warn", "off"])
def test_policies(tmp_path: Path, policy: Policy, status: str, caplog: pytest.LogCaptureFixture) -> None:
    """`require` takes what is verified, `warn` all but what failed, `off` everything, silently."""
    package = unpacked(tmp_path, PACKAGES[status])
    trust = Trust(policy, KEYS)
    if status in {"require": ("unknown key", "unsigned", "failed"), "warn": ("failed",), "off": ()}[policy]:
        with pytest.raises(IntegrityError):
            check(package, trust)
    else:
        assert status == check(package, trust).status
    warned = policy == "warn" and status in ("unknown key", "unsigned")
    assert int(warned) == len(caplog.records)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            "unknown key",
            f"demo.expert: signed by unknown key {public(OTHER_SEED)[:24]}…; pin the key, only after checking "
            f"the whole of it with the publisher: hivellm-ort trust add {public(OTHER_SEED)} --name NAME",
        ),
        (
            "unsigned",
            "demo.expert: unsigned; sign it if it is yours ('hivellm-ort sign'), else ask its publisher for a signed "
            "package; or load it with trust='off'",
        ),
        (
            "failed",
            "demo.expert: failed: 'README.md' was changed after signing; do not use the package; fetch it "
            "again from its publisher",
        ),
    ],
)
def test_messages(tmp_path: Path, status: str, message: str) -> None:
    """A refusal names the package, the verdict and the cure."""
    with pytest.raises(IntegrityError) as caught:
        check(unpacked(tmp_path, PACKAGES[status]), Trust("require", KEYS), where="demo.expert")
    assert message == str(caught.value)


def test_names_the_package(tmp_path: Path) -> None:
    """Without a name, messages give the digest of a file and the path of a folder."""
    package = unpacked(tmp_path / "a", PACKAGES["unsigned"])
    with pytest.raises(IntegrityError, match=f"^package {package.sha256[:12]}…: unsigned"):
        check(package, Trust("require", {}))
    package = folder(tmp_path / "b", PACKAGES["unsigned"])
    with pytest.raises(IntegrityError) as caught:
        check(package, Trust("require", {}))
    assert str(caught.value).startswith(f"{tmp_path / 'b'}: unsigned")


def test_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for a package however often it is loaded, one for a folder however its path is written."""
    first = unpacked(tmp_path / "a", PACKAGES["unsigned"])
    other = unpacked(tmp_path / "b", PACKAGES["unknown key"])
    place = folder(tmp_path / "c", PACKAGES["unsigned"])
    same = folder(tmp_path / "a" / ".." / "c", {})
    for package in (first, first, other, place, same, first, place):
        check(package, Trust("warn", KEYS))
    assert 3 == len(caplog.records)
    assert {("hivellm_ort", logging.WARNING)} == {(r.name, r.levelno) for r in caplog.records}
    assert f"hivellm-ort trust add {public(OTHER_SEED)} --name NAME" in caplog.text


def test_default_is_to_warn(tmp_path: Path) -> None:
    """The default policy is to warn, with the keys of the user's list."""
    assert Trust("warn", None) == Trust()
    package = unpacked(tmp_path / "p", native())
    assert "unknown key" == check(package, Trust()).status
    TrustStore().add("me", public())
    assert "me" == check(package, Trust()).signer
    assert "me" == check(package, Trust("require")).signer


def test_keys_of_an_application(tmp_path: Path) -> None:
    """Keys that are given replace the user's list, and later changes to the mapping do not count."""
    TrustStore().add("me", public())
    keys = dict(KEYS)
    trust = Trust("require", keys)
    keys.clear()
    assert "publisher" == check(unpacked(tmp_path / "p", native()), trust).signer
    with pytest.raises(IntegrityError):
        check(unpacked(tmp_path / "p", native()), Trust("require", {}))


@pytest.mark.parametrize("policy", ["", "Require", "none", None, 1])
def test_wrong_policy(policy: Any) -> None:
    """A wrong policy is an error that names the three."""
    with pytest.raises(ValueError, match="it must be 'require', 'warn' or 'off'"):
        Trust(policy)


@pytest.mark.parametrize("keys", [{"x": "ed25519:0"}, {"": public()}, {"a": public(), "b": public()}])
def test_wrong_keys(keys: dict[str, str]) -> None:
    """Malformed keys and names are errors at once, not when a package is loaded."""
    with pytest.raises(ValueError, match=r"not a public key|not a name|pinned as"):
        Trust("require", keys)


def test_cannot_be_verified(tmp_path: Path) -> None:
    """What cannot even be read is an error, and a failed verdict where nothing is refused."""
    package = folder(tmp_path, {"manifest.json": b"not JSON"})
    for policy in ("warn", "require"):
        with pytest.raises(ManifestError):
            check(package, Trust(policy, KEYS))  # type: ignore[arg-type]
    assert "failed" == check(package, Trust("off", KEYS)).status


def test_damaged_list(tmp_path: Path) -> None:
    """A damaged list of keys is an error only where a key is to be looked up."""
    store = TrustStore()
    store.path.parent.mkdir()
    store.path.write_text("{}")
    assert "unsigned" == check(unpacked(tmp_path / "p", PACKAGES["unsigned"]), Trust()).status
    with pytest.raises(LoadError, match="pinned keys cannot be read"):
        check(unpacked(tmp_path / "p", native()), Trust())
    assert "failed" == check(unpacked(tmp_path / "p", native()), Trust("off")).status
