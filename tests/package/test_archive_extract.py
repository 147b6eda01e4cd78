"""Good archives come out whole, and what must not be loaded stays out."""

# The expected value comes first.

from __future__ import annotations

import gzip
import hashlib
import random
import tarfile
import time
from pathlib import Path

import pytest
from package_samples import END, GOOD, HIVELLM, NOISE, entry, files_under, padded, pax, raw_header, save, tar

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.package.archive import Limits, Member, extract, sha256_file


def test_size_that_only_pax_tells(tmp_path: Path) -> None:
    """A pax size overrides the header's, and counts for the limits."""
    package = save(tmp_path / "p", pax(("size", b"5")) + raw_header(b"a") + padded(b"hello") + END)
    assert b"hello" == _contents(package, tmp_path / "out")["a"]
    with pytest.raises(IntegrityError, match="max_member_bytes"):
        extract(package, tmp_path / "out2", limits=Limits(max_member_bytes=4))


def test_members_and_digests(tmp_path: Path) -> None:
    """Members are listed in the archive's order with size and digest, and written as they are."""
    long = "folder/" + "n" * 120 + "/\u6a21\u578b.json"
    entries = [entry("b/c.json", NOISE), GOOD, entry(long, b"x"), entry("./a", b""), entry("d/", type=b"5")]
    for number, form in enumerate([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]):
        package, out = save(tmp_path / f"p{number}", tar(*entries, form=form)), tmp_path / f"out{number}"
        contents = extract(package, out)
        expected = [("b/c.json", NOISE), ("manifest.json", b"{}"), (long, b"x"), ("a", b"")]
        assert [(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in expected] == [
            (member.name, member.size, member.sha256) for member in contents.members
        ]
        assert dict(expected) == files_under(out)
        assert sha256_file(package) == contents.sha256
        assert () == contents.notes


def test_old_folders_and_root_entry(tmp_path: Path) -> None:
    """The root as an entry and folders in the oldest form are accepted and ignored."""
    data = raw_header(b"./", kind=b"5") + raw_header(b"d/", kind=b"\0") + raw_header(b"f", 2, b"\0")
    package = save(tmp_path / "p", pax(("comment", b"x"), kind=b"g") + data + padded(b"hi") + END)
    assert {"f": b"hi"} == _contents(package, tmp_path / "out")


def test_identical_duplicate(tmp_path: Path) -> None:
    """The same member twice with the same bytes is kept once, with a note."""
    contents = extract(save(tmp_path / "p", tar(GOOD, GOOD)), tmp_path / "out")
    assert ["manifest.json"] == [member.name for member in contents.members]
    assert ("manifest.json comes twice with the same bytes",) == contents.notes


NEVER_LOADED = [
    "training_args.bin", "a.PT", "a.pth", "a.pkl", "x/a.pickle", "a.ckpt", "a.joblib", "a.npy",
    "a.npz", "a.h5", "a.keras", "weights.bin", "onnx/x/y/weights.bin", "x/onnx/weights.bin",
    "onnx/other.bin", "ONNX/weights.bin", "a.exe", "a.dll", "a.so", "a.so.1.2", "a.dylib", "a.pyd",
    "a.com", "a.scr", "a.msi", "a.jar", "tests/test_expert.py", "a.pyc", "a.sh", "a.bat", "a.CMD",
    "a.ps1", "a.vbs", "a.js"
]  # fmt: skip


@pytest.mark.parametrize("name", NEVER_LOADED)
def test_skips_pickles_programs_and_scripts(tmp_path: Path, name: str) -> None:
    """Pickles, programs and scripts are hashed and noted, but not written."""
    contents = extract(save(tmp_path / "p", tar(GOOD, entry(name, b"code"))), tmp_path / "out")
    assert {"manifest.json": b"{}"} == files_under(tmp_path / "out")
    assert (Member(name, 4, hashlib.sha256(b"code").hexdigest()),) == contents.skipped
    assert name in contents.notes[0]


@pytest.mark.parametrize(
    "name",
    ["onnx/weights.bin", "onnx/cpu/weights.bin", "a.json", "a.pt.json", "bin", "py/x.md", "a.safetensors"],
)
def test_keeps_data(tmp_path: Path, name: str) -> None:
    """The base's external data is the one .bin that is kept, and only the ending of a name counts."""
    package = save(tmp_path / "p", tar(entry(name, b"w")))
    assert {name: b"w"} == _contents(package, tmp_path / "out")


def test_modes_and_times_are_not_taken_over(tmp_path: Path) -> None:
    """A member's mode, owner and time do not reach the file system."""
    begin = time.time() - 5
    package = save(tmp_path / "p", tar(entry("a", b"1", mode=0o6777, uid=1, gid=1, mtime=1)))
    _contents(package, tmp_path / "out")
    found, own = (tmp_path / "out" / "a").stat(), tmp_path.stat()
    assert begin < found.st_mtime
    assert (0, own.st_uid) == (found.st_mode & 0o7111, found.st_uid)


def test_digest_covers_the_whole_file(tmp_path: Path) -> None:
    """The archive's digest is that of the file, also with zeros after the gzip stream, or with two streams."""
    data = tar(GOOD)
    for number, whole in enumerate(
        [gzip.compress(data) + bytes(5000), gzip.compress(data[:700]) + gzip.compress(data[700:])]
    ):
        (tmp_path / f"p{number}").write_bytes(whole)
        contents = extract(tmp_path / f"p{number}", tmp_path / f"out{number}")
        assert hashlib.sha256(whole).hexdigest() == contents.sha256


def test_progress_sums_to_the_package(tmp_path: Path) -> None:
    """Progress counts every compressed byte once."""
    package = save(tmp_path / "p", tar(entry("a", NOISE * 200)))
    steps: list[int] = []
    extract(package, tmp_path / "out", progress=steps.append)
    assert package.stat().st_size == sum(steps)


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """An interrupt in the middle empties the destination too."""
    package = save(tmp_path / "p", tar(GOOD, entry("a", random.Random(1).randbytes(1 << 20))))

    def interrupt(_count: int) -> None:
        if list((tmp_path / "out").iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(package, tmp_path / "out", progress=interrupt)
    assert [] == list((tmp_path / "out").iterdir())


def test_destination_with_files_is_left_alone(tmp_path: Path) -> None:
    """A folder with files in it is refused and not touched."""
    package = save(tmp_path / "p", tar(GOOD))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"1")
    with pytest.raises(LoadError, match="not empty"):
        extract(package, tmp_path / "out")
    assert {"mine": b"1"} == files_under(tmp_path / "out")


def test_missing_package(tmp_path: Path) -> None:
    """A package that is not there is a LoadError naming the path."""
    with pytest.raises(LoadError, match="nowhere"):
        extract(tmp_path / "nowhere.expert", tmp_path / "out")


@pytest.mark.parametrize(
    "package", sorted(HIVELLM.glob("packages/*.expert")) or [None], ids=lambda p: p and p.name
)
def test_published_packages(tmp_path: Path, package: Path | None) -> None:
    """Archives of the reference packager are accepted, and read as tarfile reads them."""
    if package is None:
        pytest.skip("the published packages are not here")
    contents = extract(package, tmp_path / "out")
    with tarfile.open(package) as reference:
        expected = {info.name: reference.extractfile(info).read() for info in reference}  # type: ignore[union-attr]
    assert sorted(expected) == sorted(member.name for member in contents.members + contents.skipped)
    assert {n: d for n, d in expected.items() if n != "training_args.bin"} == files_under(tmp_path / "out")


def _contents(package: Path, destination: Path) -> dict[str, bytes]:
    extract(package, destination)
    return files_under(destination)
