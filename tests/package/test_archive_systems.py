"""Archives as the tar programs of macOS, Windows and Linux write them."""

# The expected value comes first.

from __future__ import annotations

import gzip
import logging
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from package_samples import (
    APPLE_DOUBLE,
    BASE,
    END,
    GOOD,
    NOISE,
    apple_double,
    entry,
    expert,
    files_under,
    padded,
    pax,
    raw_header,
    save,
    tar,
)

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.filenames import is_system_file
from hivellm_ort.loading.opening import open_with_progress
from hivellm_ort.package.archive import extract, write
from hivellm_ort.package.store import Store, open_package

SYSTEM_FILES = [
    "._manifest.json", "onnx/._weights.bin", "onnx/cpu/._decoder.onnx", "__MACOSX/._a", "._a.sh", ".DS_Store",
    "onnx/.DS_Store", "Thumbs.db", "onnx/desktop.ini", "Desktop.ini",
]  # fmt: skip
OWN_FILES = [
    "_.json",
    ".gitattributes",
    "a._b",
    "._folder/a.json",
    "DS_Store",
    "thumbs.db.json",
    "desktop.ini.md",
]


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_system_files_are_left_out(tmp_path: Path, name: str) -> None:
    """Files that macOS and Windows add are hashed and noted, but not written."""
    contents = extract(save(tmp_path / "p", tar(GOOD, entry(name, APPLE_DOUBLE))), tmp_path / "out")
    assert {"manifest.json": b"{}"} == files_under(tmp_path / "out")
    assert [(name, len(APPLE_DOUBLE))] == [(member.name, member.size) for member in contents.skipped]
    assert (f"{name} was left out: macOS or Windows added it, and no package needs it",) == contents.notes


@pytest.mark.parametrize("name", OWN_FILES)
def test_files_of_similar_names_are_kept(tmp_path: Path, name: str) -> None:
    """Only the last part of a name tells a system file, and only the whole of it."""
    assert not is_system_file(name)
    contents = extract(save(tmp_path / "p", tar(GOOD, entry(name, b"1"))), tmp_path / "out")
    assert ((), ()) == (contents.skipped, contents.notes)


def test_one_note_for_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An archive of macOS has one note for all the files that were added, and loading logs it."""
    package = apple_double(expert(tmp_path / "a.expert", base=BASE), tmp_path / "mac.expert")
    with caplog.at_level(logging.INFO, "hivellm_ort"):
        opened = open_with_progress(package, Store(tmp_path / "store"))
    note = (
        "._manifest.json, onnx/._adapter.safetensors, onnx/._decoder.json and 3 more were left out: macOS or Windows "
        "added them, and no package needs them"
    )
    assert (note,) == opened.notes
    assert [f"{package}: {note}"] == caplog.messages


def test_package_with_a_base_of_macos(tmp_path: Path) -> None:
    """A package with a base that macOS packed again is unpacked as before, and no added file reaches the store."""
    whole = expert(tmp_path / "a.expert", base=BASE)
    expected = open_package(whole, Store(tmp_path / "expected"))
    store = Store(tmp_path / "store")
    opened = open_package(apple_double(whole, tmp_path / "mac.expert"), store)
    assert expected.members == opened.members
    assert [folder.name for folder in expected.bundles] == [folder.name for folder in opened.bundles]
    assert files_under(expected.bundles[0]) == files_under(opened.bundles[0])
    assert [] == list(store.root.rglob("._*"))
    assert opened == open_package(tmp_path / "mac.expert", store)


@pytest.mark.parametrize("name", ["../._a", "a:._b", "con/._a", "._a\n"])
def test_system_files_with_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    """A forbidden name is refused for any file."""
    with pytest.raises(IntegrityError):
        extract(save(tmp_path / "p", tar(GOOD, entry(name, b"1"))), tmp_path / "out")


def test_system_files_are_not_packed(tmp_path: Path) -> None:
    """Files that reading skips are not written either."""
    with pytest.raises(IntegrityError, match=r"'onnx/\.DS_Store'"):
        write(tmp_path / "p", [("manifest.json", b"{}"), ("onnx/.DS_Store", b"1")])


def test_attributes_of_macos(tmp_path: Path) -> None:
    """Attributes in pax headers, as bsdtar and GNU tar write them, are passed over; endless ones are refused."""
    small = [
        ("mtime", b"1700000000.25"),
        ("LIBARCHIVE.creationtime", b"1700000000"),
        ("LIBARCHIVE.xattr.com.apple.provenance", b"AQIAbm9ub25v"),
        ("SCHILY.xattr.com.apple.provenance", b"\x01\x02\x00=\n\xff"),
        ("SCHILY.fflags", b"nodump"),
        ("hdrcharset", b"BINARY"),
    ]
    for number, size in enumerate([10, 100 << 10]):
        records = [*small, ("SCHILY.xattr.user.note", b"x" * size)]
        package = save(tmp_path / f"p{number}", pax(*records) + tar(GOOD))
        assert ["manifest.json"] == [m.name for m in extract(package, tmp_path / f"out{number}").members]
    large = pax(("SCHILY.xattr.user.note", b"x" * (300 << 10))) + tar(GOOD)
    with pytest.raises(IntegrityError, match="without --xattrs"):
        extract(save(tmp_path / "large", large), tmp_path / "out-large")
    each = pax(("SCHILY.xattr.user.note", NOISE * 80)) + raw_header(b"a") * 1
    with pytest.raises(IntegrityError, match="without --xattrs"):
        extract(save(tmp_path / "many", each * 80), tmp_path / "out-many")


def test_names_in_pax_headers_of_macos(tmp_path: Path) -> None:
    """A name with accents, which macOS writes to the header in pieces and whole to pax, is the one of pax."""
    data = pax(("path", "données/é.json".encode())) + raw_header(b"donn") + END
    extract(save(tmp_path / "p", data), tmp_path / "out")
    assert {"données/é.json": b""} == files_under(tmp_path / "out")


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"weights.bin")], "weights.bin"),
        ([("GNU.sparse.map", b"0,5"), ("path", b"weights.bin")], "weights.bin"),
        ([("SCHILY.realsize", b"9999")], "member"),
        ([("SUN.holesdata", b" 0 5")], "member"),
    ],
    ids=["gnu 1.0", "gnu 0.1", "star", "solaris"],
)
def test_sparse_files_are_refused_by_name(
    tmp_path: Path, records: list[tuple[str, bytes]], name: str
) -> None:
    """A file stored with holes is refused with its own name and the flag that avoids it."""
    package = save(tmp_path / "p", pax(*records) + raw_header(b"member", 5) + padded(b"hello") + END)
    with pytest.raises(
        IntegrityError, match=f"member '{name}' is not a regular file .sparse file.*without --sparse"
    ):
        extract(package, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("onnx\\decoder.onnx", "a backslash is not allowed in names, folders are joined by /"),
        ("C:\\expert\\manifest.json", "names with a drive are not allowed"),
        ("C:/expert/manifest.json", "names with a drive are not allowed"),
    ],
)
def test_names_of_windows(tmp_path: Path, name: str, word: str) -> None:
    """The message for a path of Windows names the fault."""
    with pytest.raises(IntegrityError) as caught:
        extract(save(tmp_path / "p", tar(GOOD, entry(name, b"1"))), tmp_path / "out")
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "cure"),
    [(tarfile.LNKTYPE, "with --hard-dereference"), (tarfile.SYMTYPE, "with --dereference")],
    ids=["hard link", "symbolic link"],
)
def test_links_say_how_to_pack(tmp_path: Path, kind: bytes, cure: str) -> None:
    """GNU tar writes hard-linked files as links. The message names the flag that avoids it."""
    with pytest.raises(IntegrityError, match=cure):
        extract(save(tmp_path / "p", tar(GOOD, entry("a", type=kind, linkname="b"))), tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tar(GOOD), "a tar without gzip"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (b"BZh91AY&SY" + bytes(60), "compressed with bzip2"),
        (b"\xfd7zXZ\0" + bytes(60), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "compressed with zstd"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(60), "a 7-Zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
    ids=["tar", "zip", "bzip2", "xz", "zstd", "7z", "git lfs", "html"],
)
def test_other_files(tmp_path: Path, data: bytes, what: str) -> None:
    """A file of another kind is called by its kind."""
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(IntegrityError, match=f"not a package but {what}.*a package is a tar.gz"):
        extract(tmp_path / "p", tmp_path / "out")


def test_package_inside_a_folder(tmp_path: Path) -> None:
    """A folder that was packed instead of its content is named."""
    package = save(tmp_path / "p.expert", tar(entry("sql/manifest.json", b"{}"), entry("sql/a.json", b"{}")))
    with pytest.raises(ManifestError, match="missing at the top of the archive; it is in 'sql/'"):
        open_package(package, Store(tmp_path / "store"))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_of_python(tmp_path: Path, form: int) -> None:
    """Every format of Python's tarfile is read, with any owner, time and mode."""
    folder = "/".join(["folder" * 6] * 2)
    info, data = entry(
        f"{folder}/vocab.json", NOISE, mode=0o100777, mtime=1_700_000_000, uname="Jörg", uid=2_000_000
    )
    if form == tarfile.GNU_FORMAT:
        info.uid = info.gid = 1 << 40  # in base 256
    package = save(tmp_path / "p", tar(GOOD, (info, data), form=form))
    extract(package, tmp_path / "out")
    assert {"manifest.json": b"{}", f"{folder}/vocab.json": NOISE} == files_under(tmp_path / "out")


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize(
    "flags",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax"],
        ["--format=posix", "--xattrs"],
        ["--format=gnu", "--owner=4294967294", "--group=4294967294", "--numeric-owner"],
        ["--format=gnu", "--blocking-factor=200"],
        ["--format=pax", "--pax-option=globexthdr.name=g,comment:=x"],
        ["--format=gnu", "--mode=000"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_what_gnu_tar_writes(tmp_path: Path, flags: list[str]) -> None:
    """`tar czf x.expert -C folder .` is read whatever its format, with long names and the folders as members."""
    long = "weights/" + "n" * 150 + ".json"
    expected = {"manifest.json": b"{}", long: NOISE, "tests/über modèle.txt": b"x", "empty.md": b""}
    for name, data in expected.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    command = ["tar", "czf", str(tmp_path / "x.expert"), *flags, "-C", str(tmp_path / "in"), "."]
    if b"GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True, check=True).stdout:
        pytest.skip("this tar is not GNU tar")
    subprocess.run(command, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    contents = extract(tmp_path / "x.expert", tmp_path / "out")
    assert expected == files_under(tmp_path / "out")
    assert () == contents.notes


def test_one_tar_in_many_gzip_members(tmp_path: Path) -> None:
    """A parallel gzip writes many members, empty ones too; together they are one archive."""
    data = tar(GOOD, entry("a", NOISE))
    parts = [gzip.compress(data[at : at + 1000]) for at in range(0, len(data), 1000)]
    (tmp_path / "p").write_bytes(gzip.compress(b"").join(parts) + gzip.compress(b""))
    extract(tmp_path / "p", tmp_path / "out")
    assert {"manifest.json": b"{}", "a": NOISE} == files_under(tmp_path / "out")
