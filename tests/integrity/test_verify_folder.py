"""Verifying a folder in place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from integrity_samples import CONTENTS, KEYS, Files, archive, folder, native, reference, tampered, unpacked

from hivellm_ort.errors import LoadError, ManifestError
from hivellm_ort.integrity import listing
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.archive import extract
from hivellm_ort.package.store import Store, open_package


@pytest.fixture(params=[native, reference], ids=["hivellm-ort/1", "expert-cli"])
def files(request: pytest.FixtureRequest) -> Files:
    """The files of a signed package."""
    made: Files = request.param()
    return made


def test_verifies(tmp_path: Path, files: Files) -> None:
    """The files of a signed package are verified in place."""
    expected = verify(unpacked(tmp_path / "archive", files), KEYS)
    assert "verified" == expected.status
    assert expected == verify(folder(tmp_path / "folder", files), KEYS)


def test_as_it_is_opened(tmp_path: Path, files: Files) -> None:
    """The files from `extract` are verified when they are opened as a folder."""
    extract(archive(tmp_path / "p.expert", files), tmp_path / "files")
    assert "verified" == verify(open_package(tmp_path / "files", Store(tmp_path / "store")), KEYS).status


def test_members(tmp_path: Path, files: Files) -> None:
    """No file can be added, removed, renamed, moved or changed."""
    for change, changed in tampered(files).items():
        assert "failed" == verify(folder(tmp_path / change, changed), KEYS).status, change


def test_manifest(tmp_path: Path, files: Files) -> None:
    """A changed manifest fails."""
    files["manifest.json"] = files["manifest.json"].replace(b"0.1.0", b"0.1.1")
    assert "failed" == verify(folder(tmp_path, files), KEYS).status


def test_empty_folders_do_not_matter(tmp_path: Path, files: Files) -> None:
    """Folders are not members."""
    opened = folder(tmp_path, files)
    (tmp_path / "empty").mkdir()
    assert "verified" == verify(opened, KEYS).status


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no permission to make symbolic links")


def test_links_are_refused(tmp_path: Path, files: Files) -> None:
    """A symbolic link fails, even one to the very bytes that were signed."""
    opened = folder(tmp_path / "p", files)
    (tmp_path / "p" / "README.md").rename(tmp_path / "README.md")
    _link(tmp_path / "p" / "README.md", tmp_path / "README.md")
    assert CONTENTS["README.md"] == (tmp_path / "p" / "README.md").read_bytes()
    found = verify(opened, KEYS)
    assert "failed" == found.status
    assert f"'README.md' is a link to {str(tmp_path / 'README.md')!r}" in str(found.reason)


def test_linked_folders_are_refused(tmp_path: Path, files: Files) -> None:
    """A link to a folder fails too, and is not followed."""
    opened = folder(tmp_path / "p", files)
    (tmp_path / "p" / "tests").rename(tmp_path / "tests")
    _link(tmp_path / "p" / "tests", tmp_path / "tests")
    found = verify(opened, KEYS)
    assert "failed" == found.status
    assert f"'tests' is a link to {str(tmp_path / 'tests')!r}" in str(found.reason)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_refused(tmp_path: Path, files: Files) -> None:
    """A named pipe fails instead of blocking the reader."""
    opened = folder(tmp_path, files)
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
    assert "failed: 'pipe' is a named pipe, a device or a socket, which is never opened: remove it" == str(
        verify(opened, KEYS)
    )


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there are no such names here")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a:b", "':' is not allowed"),
        ("\udcff", "'\\udcff' is not allowed"),
        ("readme.md", "collides"),
    ],
)
def test_names_are_those_of_archives(tmp_path: Path, files: Files, name: str, fault: str) -> None:
    """A name that no archive may have fails."""
    found = verify(folder(tmp_path, {**files, name: b""}), KEYS)
    assert "failed" == found.status
    assert found.reason is not None
    assert fault in found.reason


def test_too_many_files(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with more files than an archive may have fails early."""
    monkeypatch.setattr(listing, "_MAX_FILES", 3)
    assert "failed: the folder holds more than 3 files and folders" == str(
        verify(folder(tmp_path, files), KEYS)
    )


def test_unreadable_file(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable file is an error, because the signature cannot be checked."""

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(listing, "sha256_file", refuse)
    with pytest.raises(LoadError, match=r"cannot be verified: Permission denied; check"):
        verify(folder(tmp_path, files), KEYS)


def test_no_manifest(tmp_path: Path) -> None:
    """A manifest that cannot be read is an error."""
    opened = folder(tmp_path, {"manifest.json": b"{"})
    with pytest.raises(ManifestError):
        verify(opened, KEYS)


def test_unsigned_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of an unsigned folder are not hashed; a left signature.sig is noticed all the same."""
    monkeypatch.setattr(listing, "sha256_file", None)
    opened = folder(tmp_path, {"manifest.json": b"{}", "weights": b"x"})
    assert "unsigned" == str(verify(opened, KEYS))
    (tmp_path / "signature.sig").write_bytes(b"0" * 128)
    assert "failed" == verify(opened, KEYS).status


def test_unsigned_needs_no_cryptography(tmp_path: Path) -> None:
    """Checking an unsigned package does not load the library of signatures."""
    folder(tmp_path, {"manifest.json": b"{}"})
    code = (
        "import sys; from pathlib import Path\n"
        "from hivellm_ort.integrity.trust import Trust, check\n"
        "from hivellm_ort.package.store import Store, open_package\n"
        f"package = open_package(Path({str(tmp_path)!r}), Store(Path({str(tmp_path)!r})))\n"
        "print(check(package, Trust()), 'cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "unsigned False\n" == done.stdout
    assert "unsigned; to end this warning" in done.stderr
