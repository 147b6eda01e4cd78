"""`hivellm-ort keygen`, `sign`, `verify` and `trust`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from integrity_samples import CONTENTS, MANIFEST, OTHER_SEED, archive, folder, native, public, reference

from hivellm_ort.cli.main import main
from hivellm_ort.integrity.truststore import TrustStore
from hivellm_ort.package.archive import extract

Invoke = Callable[..., Result]
UNSIGNED = {**CONTENTS, "manifest.json": json.dumps(MANIFEST).encode()}


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run `hivellm-ort` in a folder of its own."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def assert_refused(result: Result, message: str) -> None:
    """Status 2, one line that begins with `error:` and nothing on standard output."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert 1 == result.stderr.count("\n")


def test_from_key_to_verified(invoke: Invoke, tmp_path: Path) -> None:
    """Make a key, sign, pin the key, verify, and forget it again."""
    made = invoke("keygen")
    key = (tmp_path / "publisher.pub").read_text()
    assert f"public key   {key}\npublic file  publisher.pub\nprivate file publisher.key\n" == made.stdout
    archive(tmp_path / "p.expert", UNSIGNED)
    signed = invoke("sign", "p.expert", "--key", "publisher.key")
    assert (0, f"signed   p.expert\nkey      {key}\nmembers  5\n") == (signed.exit_code, signed.stdout)
    unknown = invoke("verify", "p.expert")
    assert (1, f"signed by unknown key {key[:24]}…") == (unknown.exit_code, unknown.stdout.splitlines()[0])
    assert f"me  {key}\n" == invoke("trust", "add", "publisher.pub", "--name", "me").stdout
    assert f"me  {key}\n" == invoke("trust", "list").stdout
    verified = invoke("verify", "p.expert")
    assert 0 == verified.exit_code
    assert f"verified by me\nkey      {key}\nscheme   hivellm-ort/1\nmembers  5\n" == verified.stdout
    assert "removed me\n" == invoke("trust", "remove", key).stdout
    assert "" == invoke("trust", "list").stdout
    assert 1 == invoke("verify", "p.expert").exit_code


def test_keygen(invoke: Invoke, tmp_path: Path) -> None:
    """A key is written to the given path, is also printed as JSON, and is never overwritten."""
    document = json.loads(invoke("keygen", "k.pem", "--json").stdout)
    assert {
        "public_key": (tmp_path / "k.pub").read_text(),
        "private_file": "k.pem",
        "public_file": "k.pub",
    } == document
    assert_refused(invoke("keygen", "k.pem"), "never overwritten")


def test_sign_options(invoke: Invoke, tmp_path: Path) -> None:
    """The publisher, the output and the notes."""
    invoke("keygen", "k.key")
    archive(tmp_path / "p.expert", {**reference(), "extra.bin": b"x"})
    result = invoke(
        "sign", "p.expert", "--key", "k.key", "--publisher", "Ünal", "--output", "q.expert", "--json"
    )
    document = json.loads(result.stdout)
    assert ("q.expert", 5, 3) == (document["path"], document["members"], len(document["notes"]))
    assert (tmp_path / "k.pub").read_text() == document["key"]
    plain = invoke("sign", "p.expert", "--key", "k.key", "--output", "r.expert").stdout
    assert 3 == plain.count("note     ")
    for name, publisher in (("q", "Ünal"), ("r", "k")):
        extract(tmp_path / f"{name}.expert", tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_bytes())
        assert publisher == manifest["integrity"]["publisher"]
    assert_refused(invoke("sign", "p.expert", "--key", "none.key"), "private key cannot be read")
    assert_refused(invoke("sign", "none.expert", "--key", "k.key"), "none.expert")


def test_verify_statuses(invoke: Invoke, tmp_path: Path) -> None:
    """Status 0 is verified, 1 is not, 2 cannot be read."""
    TrustStore().add("publisher", public())
    cases = {
        "verified by publisher": (native(), 0),
        f"signed by unknown key {public(OTHER_SEED)[:24]}…": (native(seed=OTHER_SEED), 1),
        "unsigned": (UNSIGNED, 1),
        "failed: 'README.md' was changed after signing": ({**reference(), "README.md": b"y"}, 1),
    }
    for index, (line, (files, code)) in enumerate(cases.items()):
        result = invoke("verify", archive(tmp_path / f"{index}.expert", files))
        assert (code, line) == (result.exit_code, result.stdout.splitlines()[0])
        in_place = invoke("verify", folder(tmp_path / str(index), files).root)
        assert (code, result.stdout) == (in_place.exit_code, in_place.stdout)
    (tmp_path / "text.expert").write_text("no archive")
    for path in ("text.expert", "missing.expert"):
        assert_refused(invoke("verify", path), path)
    refused = invoke("verify", "missing.expert", "--json")
    assert (2, "LoadError") == (refused.exit_code, json.loads(refused.stdout)["error"]["type"])


def test_verify_keys(invoke: Invoke, tmp_path: Path) -> None:
    """Keys that are given count instead of the pinned ones, as text and as files."""
    package = archive(tmp_path / "p.expert", native())
    (tmp_path / "a.pub").write_text(public())
    given = invoke("verify", package, "--key", public(OTHER_SEED), "--key", "a.pub")
    assert (0, "verified by a.pub") == (given.exit_code, given.stdout.splitlines()[0])
    assert f"verified by {public()}" == invoke("verify", package, "--key", public()).stdout.splitlines()[0]
    TrustStore().add("publisher", public())
    assert 1 == invoke("verify", package, "--key", public(OTHER_SEED)).exit_code
    assert_refused(invoke("verify", package, "--key", "ed25519:x"), "is not a public key")


def test_verify_reads_every_byte(invoke: Invoke, tmp_path: Path) -> None:
    """A package that was verified before is read again, though its size and its time are the same."""
    package = archive(tmp_path / "p.expert", native())
    other = archive(tmp_path / "q.expert", {**native(), "README.md": b"# Domo\n"})
    assert 0 == invoke("verify", package, "--key", public()).exit_code
    times = package.stat()
    changed = other.read_bytes()
    assert times.st_size == len(changed)
    package.write_bytes(changed)
    os.utime(package, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert 1 == invoke("verify", package, "--key", public()).exit_code


def test_verify_as_json(invoke: Invoke, tmp_path: Path) -> None:
    """One object with everything of the verdict."""
    package = archive(tmp_path / "p.expert", native())
    result = invoke("verify", package, "--json", "--key", public())
    assert {
        "status": "verified",
        "key": public(),
        "signer": public(),
        "reason": None,
        "scheme": "hivellm-ort/1",
        "members": 5,
        "sidecar": None,
        "notes": [],
    } == json.loads(result.stdout)
    assert 0 == result.exit_code
    assert 1 == invoke("verify", package, "--json").exit_code


def test_notes(invoke: Invoke, tmp_path: Path) -> None:
    """Why a package counts as unsigned, and what was left out of it, is said."""
    manifest = json.dumps({**MANIFEST, "integrity": {"timestamp": "t", "public_key": "k", "signature": "s"}})
    package = archive(tmp_path / "p.expert", {"manifest.json": manifest.encode(), "training_args.bin": b"x"})
    lines = invoke("verify", package).stdout.splitlines()
    assert ["unsigned", "members  2"] == lines[:2]
    assert "note     the integrity block is of a form that defines no message" == lines[2]
    assert lines[3].startswith("note     training_args.bin was left out")


@pytest.mark.parametrize(
    ("content", "encoding", "expected"),
    [
        ("{digest}  p.expert\n", "utf-8", "matches"),
        ("{digest}", "utf-8", "matches"),
        ("{digest}\r\n", "utf-8-sig", "matches"),
        ("{digest}\r\n", "utf-16", "matches"),
        ("0  p.expert\n", "utf-8", "differs"),
        ("0  p.expert\r\n", "utf-16", "differs"),
        ("", "utf-8", "differs"),
        ("é", "latin-1", "unreadable"),
    ],
)
def test_sidecar(invoke: Invoke, tmp_path: Path, content: str, encoding: str, expected: str) -> None:
    """The digest beside the package is compared, and is never a reason to fail."""
    package = archive(tmp_path / "p.expert", native())
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    (tmp_path / "p.expert.sha256").write_bytes(content.format(digest=digest).encode(encoding))
    result = invoke("verify", package, "--key", public())
    assert 0 == result.exit_code
    [line] = [line for line in result.stdout.splitlines() if line.startswith("sidecar")]
    assert line.startswith(f"sidecar  {expected}")
    assert (expected == "differs") == ("before the file is complete" in line)
    assert expected == json.loads(invoke("verify", package, "--json").stdout)["sidecar"]


def test_trust(invoke: Invoke, tmp_path: Path) -> None:
    """Adding, listing as JSON, conflicts and unknown names."""
    assert {} == json.loads(invoke("trust", "list", "--json").stdout)
    invoke("trust", "add", public(), "--name", "Zoë")
    assert {"Zoë": public()} == json.loads(invoke("trust", "list", "--json").stdout)
    assert (tmp_path / "home" / "trusted_keys.json").is_file()
    assert_refused(invoke("trust", "add", public(OTHER_SEED), "--name", "Zoë"), "is pinned to another key")
    assert_refused(invoke("trust", "add", "none.pub", "--name", "x"), "none.pub")
    assert_refused(invoke("trust", "remove", "x"), "is not pinned")
    assert 2 == invoke("trust", "add", public()).exit_code


def test_help_tells_the_statuses(invoke: Invoke) -> None:
    """The help of verify documents its exit statuses."""
    text = " ".join(invoke("verify", "--help").stdout.split())
    assert "Exit status: 0 verified; 1 not verified" in text
