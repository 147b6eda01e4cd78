"""Key files, in the form of the reference tool."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest
from integrity_samples import SEED, public

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.integrity import ed25519, keyfiles
from hivellm_ort.integrity.keyfiles import generate_key, read_private_key, read_public_key

POSIX = pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")


def test_form(tmp_path: Path) -> None:
    """32 raw bytes, and beside them ed25519: with 64 hex digits and no newline."""
    path = tmp_path / "my.key"
    key = generate_key(path)
    assert key.encode() == (tmp_path / "my.pub").read_bytes()
    assert ed25519.PUBLIC_KEY.fullmatch(key)
    assert 32 == path.stat().st_size
    assert path.read_bytes() == read_private_key(path)
    assert key == public(read_private_key(path)) == read_public_key(tmp_path / "my.pub")
    assert key != generate_key(tmp_path / "other.key")


@POSIX
def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    """The private file has mode 0600 with any umask."""
    before = os.umask(0)
    try:
        generate_key(tmp_path / "my.key")
    finally:
        os.umask(before)
    assert 0o600 == (tmp_path / "my.key").stat().st_mode & 0o777


@POSIX
def test_warns_of_other_readers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A private key that others can read is used with a warning that says what to do."""
    path = tmp_path / "my.key"
    generate_key(path)
    read_private_key(path)
    assert [] == caplog.messages
    for mode in (0o640, 0o604):
        caplog.clear()
        path.chmod(mode)
        read_private_key(path)
        assert [f"{path}: other users can read this private key; run chmod 600 on it"] == caplog.messages


@pytest.mark.parametrize("name", ["my.key", "my.pub"])
def test_never_overwrites(tmp_path: Path, name: str) -> None:
    """A file that is there stays as it is, and no other is left."""
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(LoadError, match=rf"{name}: is there already, and keys are never overwritten"):
        generate_key(tmp_path / "my.key")
    assert [(name, b"precious")] == [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]


@POSIX
def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link at the path of a key counts as an existing file."""
    (tmp_path / "my.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadError, match="is there already"):
        generate_key(tmp_path / "my.key")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """If a file cannot be written, no file is left."""
    calls = []
    real = os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(keyfiles.os, "fsync", full)
    with pytest.raises(LoadError, match="cannot be written: No space left on device"):
        generate_key(tmp_path / "my.key")
    assert [] == list(tmp_path.iterdir())


def test_suffix_of_public_keys(tmp_path: Path) -> None:
    """A private key cannot have the name of its public one."""
    with pytest.raises(ValueError, match="for the public key"):
        generate_key(tmp_path / "my.pub")
    with pytest.raises(ValueError, match="names no file"):
        generate_key(Path())
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data", [b"", SEED[:31], SEED + b"\n", SEED.hex().encode(), b"-----BEGIN PRIVATE KEY-----"]
)
def test_wrong_private_keys(tmp_path: Path, data: bytes) -> None:
    """A private key has exactly 32 bytes."""
    path = tmp_path / "my.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="exactly 32 raw bytes"):
        read_private_key(path)


def test_missing_files(tmp_path: Path) -> None:
    """A file that is not there is a typed error."""
    with pytest.raises(LoadError, match="private key cannot be read"):
        read_private_key(tmp_path / "my.key")
    for path in ("missing.pub", "nul\0.pub", ""):
        with pytest.raises(LoadError, match="public key cannot be read"):
            read_public_key(path)
    with pytest.raises(LoadError, match="cannot be written"):
        generate_key(tmp_path / "missing" / "my.key")


def test_public_keys(tmp_path: Path) -> None:
    """A public key is a string or a file, which may end with white space."""
    path = tmp_path / "my.pub"
    assert public() == read_public_key(public())
    path.write_text(f"{public()} \r\n")
    assert public() == read_public_key(path) == read_public_key(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"], ids=["no end", "lf", "crlf"])
def test_public_keys_with_a_mark(tmp_path: Path, encoding: str, ending: str) -> None:
    """A public key that an editor or shell of Windows saved is read by its byte order mark."""
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "my.pub").write_bytes(mark + (public() + ending).encode(encoding))
    assert public() == read_public_key(tmp_path / "my.pub")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n" + public().encode(),
        public().upper().encode(),
        SEED,
        b"ed25519:\xff",
        b"x" * 5000,
        codecs.BOM_UTF8 * 2 + public().encode(),
        codecs.BOM_UTF8 + public().upper().encode(),
        public().encode("utf-16-le"),
        (public()[:40] + "\ufeff" + public()[40:]).encode(),
        (public() + "\n" + public()).encode("utf-16"),
        codecs.BOM_UTF16_LE + public().encode("utf-16-le") + b"\0",
        codecs.BOM_UTF16_LE + public().encode(),
    ],
)
def test_wrong_public_keys(tmp_path: Path, data: bytes) -> None:
    """Anything else is refused, and the message is short and printable."""
    path = tmp_path / "my.pub"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is not a public key") as caught:
        read_public_key(path)
    message = str(caught.value).removeprefix(str(path))
    assert message.isprintable()
    assert len(message) < 400
    with pytest.raises(IntegrityError, match="is not a public key"):
        read_public_key("ed25519:" + "G" * 64)
