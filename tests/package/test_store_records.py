"""An unchanged package file is not hashed again, and a changed one always is."""

# The expected value comes first.

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from package_samples import BASE, expert

from hivellm_ort.errors import LoadError
from hivellm_ort.package import records as records_module
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.records import Found, hash_package
from hivellm_ort.package.store import Store


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package file."""
    return expert(tmp_path / "p.expert", base=BASE)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed for a record, from now on."""
    paths: list[Path] = []

    def noting(path: Path) -> str:
        paths.append(path)
        return sha256_file(path)

    monkeypatch.setattr(records_module, "sha256_file", noting)
    return paths


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock so many seconds ahead."""

    def set_clock(seconds: float) -> None:
        now = time.time_ns
        monkeypatch.setattr(records_module.time, "time_ns", lambda: now() + int(seconds * 1e9))

    return set_clock


def test_hashed_once(
    tmp_path: Path, package: Path, hashed: list[Path], later: Callable[[float], None]
) -> None:
    """A file is hashed on its first use, and again only when check='digest' asks."""
    later(10)
    first = Store(tmp_path / "store").unpack(package)
    assert first == Store(tmp_path / "store").unpack(package)
    assert [package] == hashed
    assert first == Store(tmp_path / "store").unpack(package, check="digest")
    assert [package] * 2 == hashed


def test_young_file_is_not_recorded(
    tmp_path: Path, package: Path, hashed: list[Path], later: Callable[[float], None]
) -> None:
    """A file changed less than two seconds ago could change again without a sign."""
    records = tmp_path / "records"
    later(1.5)
    hash_package(package, records)
    hash_package(package, records)
    assert ([package] * 2, False) == (hashed, records.exists())


def _same_size_and_time(package: Path) -> None:
    before = package.stat()
    time.sleep(0.02)  # a tick of the clock that counts changes
    package.write_bytes(bytes(before.st_size))
    os.utime(package, ns=(before.st_atime_ns, before.st_mtime_ns))


def _another_file(package: Path) -> None:
    other = package.with_name("other")
    shutil.copy2(package, other)
    other.replace(package)


@pytest.mark.parametrize(
    "change",
    [
        lambda package: package.write_bytes(package.read_bytes() + b"\0"),
        lambda package: os.utime(package, (1, 1)),
        pytest.param(
            _same_size_and_time,
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no time of such changes"),
        ),
        _another_file,
    ],
    ids=["size", "time", "content only", "another file"],
)
def test_changed_file_is_hashed_again(
    tmp_path: Path,
    package: Path,
    hashed: list[Path],
    later: Callable[[float], None],
    change: Callable[[Path], object],
) -> None:
    """Another size, time or file of the name makes the record void."""
    later(10)
    hash_package(package, tmp_path / "records")
    change(package)
    assert sha256_file(package) == hash_package(package, tmp_path / "records")
    assert [package] * 2 == hashed


def test_file_that_changes_while_it_is_hashed(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    """A file that was changed meanwhile is not recorded."""
    later(10)

    def changing(path: Path) -> str:
        digest = sha256_file(path)
        path.write_bytes(b"something else")
        return digest

    monkeypatch.setattr(records_module, "sha256_file", changing)
    hash_package(package, tmp_path / "records")
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"sha256": 1}', b'{"sha256": "' + b"0" * 64 + b'"}', b"\xff" * 100],
    ids=["empty", "cut", "list", "number", "of no file", "noise"],
)
def test_damaged_record_is_ignored(
    tmp_path: Path, package: Path, hashed: list[Path], later: Callable[[float], None], content: bytes
) -> None:
    """A record that is no record is as none, and is replaced."""
    later(10)
    records = tmp_path / "records"
    digest = hash_package(package, records)
    (record,) = records.iterdir()
    record.write_bytes(content)
    assert [digest] * 2 == [hash_package(package, records) for _ in range(2)]
    assert [package] * 2 == hashed


def test_wrong_record_heals(
    tmp_path: Path, package: Path, hashed: list[Path], later: Callable[[float], None]
) -> None:
    """A record that names no package here leads to unpacking, and is then forgotten."""
    later(10)
    store = Store(tmp_path / "store")
    first = store.unpack(package)
    (record,) = (store.root / "records").iterdir()
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "sha256": "0" * 64}))
    assert [first] * 3 == [store.unpack(package) for _ in range(3)]
    assert [package] * 2 == hashed


def test_records_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    """The number of records is limited. Unfinished files of killed processes are removed with them."""
    monkeypatch.setattr(records_module, "MAX_RECORDS", 3)
    later(10)
    records = tmp_path / "records"
    records.mkdir()
    (records / ".killed.tmp").write_bytes(b"{")
    os.utime(records / ".killed.tmp", (1, 1))
    for number in range(5):
        package = tmp_path / f"{number}.expert"
        package.write_bytes(b"%d" % number)
        hash_package(package, records)
    assert 3 == len(list(records.iterdir()))
    assert not (records / ".killed.tmp").exists()


def test_records_that_cannot_be_written(
    tmp_path: Path, package: Path, later: Callable[[float], None]
) -> None:
    """A digest is found even if no record can be written."""
    later(10)
    (tmp_path / "file").write_bytes(b"")
    assert sha256_file(package) == hash_package(package, tmp_path / "file" / "records")


def test_a_check_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a check is valid for its name, these bytes and this version, in every process."""
    calls: list[str] = []

    def recalled(what: str = "limits", content: bytes = b"content", result: float = 2) -> Found:
        def find() -> Found:
            calls.append(what)
            return {"growth": result}

        return Store(tmp_path / "store").recall(what, content, find)

    assert {"growth": 2} == recalled()
    assert {"growth": 2} == recalled(result=3)
    assert ["limits"] == calls
    assert {"growth": 3} == recalled(content=b"other", result=3)
    assert {"growth": 4} == recalled("more", result=4)
    monkeypatch.setattr(records_module, "__version__", "99")
    assert {"growth": 5} == recalled(result=5)
    assert ["limits", "limits", "more", "limits"] == calls


def test_what_a_check_refuses_is_not_remembered(tmp_path: Path) -> None:
    """It is checked again, and refused again."""

    def find() -> Found:
        raise LoadError("too large")

    for _ in range(2):
        with pytest.raises(LoadError, match="too large"):
            Store(tmp_path / "store").recall("limits", b"content", find)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"check": "other"}', '{"check": "limits", "growth": "2"}'])
def test_a_damaged_record_of_a_check(tmp_path: Path, text: str) -> None:
    """It does not count, and is written anew; a store that cannot be written does no harm."""
    store = Store(tmp_path / "store")
    store.recall("limits", b"content", lambda: {"growth": 1})
    (record,) = (tmp_path / "store" / "records").iterdir()
    record.write_text(text)
    assert {"growth": 2} == store.recall("limits", b"content", lambda: {"growth": 2})
    assert {"growth": 2} == store.recall("limits", b"content", lambda: pytest.fail("checked again"))
    (tmp_path / "file").touch()
    assert {} == Store(tmp_path / "file").recall("limits", b"content", dict)
