"""Entries that are being loaded are not removed, and released entries can be removed."""

# The expected value comes first.

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, bundle, expert, files_under
from store_samples import assert_whole
from store_workers import KEY, PREPARED, clear_until, hold_for_ever, load_held, processes

from hivellm_ort.errors import LoadError
from hivellm_ort.package import entry_locks, folders, pruning
from hivellm_ort.package.entry_locks import exclusive_lock, shared_lock
from hivellm_ort.package.folders import Layout
from hivellm_ort.package.store import Store

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these locks nor these files")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a base."""
    return expert(tmp_path / "p.expert", base=BASE)


def test_nothing_held_is_cleared(tmp_path: Path, package: Path) -> None:
    """Package, base and prepared adapter of a `with` block stay when another store is cleared, and go after it."""
    with Store(tmp_path / "store") as store:
        found = store.unpack(package)
        adapter = store.prepare_adapter(KEY, lambda: PREPARED)
        assert 3 == Store(store.root).clear()
        assert BASE == files_under(found.bundles[0])
        assert (found.root / "manifest.json").is_file()
        assert PREPARED == adapter.read_bytes()
    assert 0 == Store(store.root).clear()
    assert [] == list((store.root / "bases").iterdir())
    assert [] == list((store.root / "blobs").iterdir())


def test_nothing_held_is_pruned(tmp_path: Path, package: Path) -> None:
    """A small size limit, or an age limit, does not remove locked entries either."""
    with Store(tmp_path / "store") as store:
        found = store.unpack(package)
        assert [] == Store(store.root).prune(max_bytes=0)
        assert [] == Store(store.root).prune(unused_days=-1)
        Store(store.root, max_bytes=1).unpack(expert(tmp_path / "q.expert", base=bundle(b"other" * 99)))
        assert BASE == files_under(found.bundles[0])
    assert [] != Store(store.root).prune(max_bytes=0)


def test_thin_base_is_held(tmp_path: Path, package: Path) -> None:
    """A base that is found only by its digest stays too."""
    Store(tmp_path / "store").unpack(package)
    with Store(tmp_path / "store") as store:
        folder = store.find_bundle(BASE_DIGEST)
        assert folder is not None
        assert 1 == Store(store.root).clear()
        assert BASE == files_under(folder)


def test_what_is_left_heals(tmp_path: Path, package: Path) -> None:
    """A store that was cleared around something held is whole after the next load."""
    with Store(tmp_path / "store") as store:
        store.unpack(package)
        Store(store.root).clear()
    Store(store.root).unpack(package, check="digest")
    assert_whole(store.root)


def test_killed_process_holds_nothing(tmp_path: Path, package: Path) -> None:
    """Entries that a killed process had locked can be removed."""
    context = processes()
    mine, theirs = context.Pipe()
    process = context.Process(target=hold_for_ever, args=(tmp_path / "store", package, theirs))
    process.start()
    mine.recv()
    store = Store(tmp_path / "store")
    assert 2 == store.clear()
    process.kill()
    process.join(60)
    assert 0 == store.clear()


def test_cleared_by_another_process_all_the_time(tmp_path: Path, package: Path) -> None:
    """Loads succeed while another process clears the store again and again."""
    context = processes()
    stop, cleared = context.Event(), context.Value("i", 0)
    process = context.Process(target=clear_until, args=(tmp_path / "store", stop, cleared))
    process.start()
    while not cleared.value:
        assert process.is_alive()
    end, loads = time.monotonic() + 60, 0
    while loads < 40 or cleared.value <= 10:
        assert BASE == load_held(tmp_path / "store", package)
        assert time.monotonic() < end
        loads += 1
    stop.set()
    process.join(60)
    assert 0 == process.exitcode


def test_several_hold_at_once(tmp_path: Path, package: Path) -> None:
    """Two loads lock the same entry. It stays until both have released it."""
    with Store(tmp_path / "store") as first:
        first.unpack(package)
        with Store(first.root) as second:
            second.unpack(package)
            second.clear()
        assert 2 == first.clear()
    assert 0 == first.clear()


@posix
def test_entry_that_is_replaced_while_it_is_opened(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an entry is replaced before it is locked, the new one is locked."""
    store = Store(tmp_path / "store")
    folder = store.unpack(package).bundles[0]
    lock, calls = entry_locks._lock, []

    def late(number: int, *, exclusive: bool) -> bool:
        calls.append(number)
        if len(calls) == 1:
            store.clear()
            store.unpack(package)
        return lock(number, exclusive=exclusive)

    monkeypatch.setattr(entry_locks, "_lock", late)
    with shared_lock(folder), exclusive_lock(folder) as free:
        assert not free
    assert BASE == files_under(folder)


@posix
def test_damaged_entry_that_is_held(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged base is not replaced under a load that reads it: the second load waits, and then says so."""
    monkeypatch.setattr(folders, "HELD_SECONDS", 0.05)
    with Store(tmp_path / "store") as store:
        weights = store.unpack(package).bundles[0] / "weights.bin"
        content = weights.read_bytes()
        weights.write_bytes(content.swapcase())
        with pytest.raises(LoadError, match=r"damaged, and another process is loading it now"):
            Store(store.root).unpack(package, check="digest")
    Store(store.root).unpack(package, check="digest")
    assert content == weights.read_bytes()


def test_clear_does_not_wait_for_ever(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process has the store's lock, clearing and pruning end with an error after a time."""
    monkeypatch.setattr(pruning, "LOCK_SECONDS", 0.05)
    store = Store(tmp_path / "store")
    found = store.unpack(package)
    with Layout(store.root).workspace():
        for remove in (store.clear, store.prune):
            with pytest.raises(
                LoadError, match=r"another process has been unpacking or pruning for 0\.05 seconds"
            ):
                remove()
    assert found.root.is_dir()


@posix
def test_read_only_store(tmp_path: Path, package: Path) -> None:
    """A store that cannot be written is loaded from, and held."""
    store = Store(tmp_path / "store")
    store.unpack(package)
    paths = [store.root, *store.root.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        with Store(store.root) as reader:
            found = reader.unpack(package)
            with exclusive_lock(found.bundles[0]) as free:
                assert not free
            assert BASE == files_under(found.bundles[0])
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_without_locks(
    tmp_path: Path,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    """Where there are no locks a package that is unpacked is loaded, with one warning."""
    Store(tmp_path / "store").unpack(package)

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(entry_locks.fcntl, "flock", refused)
    entry_locks._warn.cache_clear()
    with caplog.at_level(logging.WARNING), Store(tmp_path / "store") as store:
        assert BASE == files_under(store.unpack(package).bundles[0])
    entry_locks._warn.cache_clear()
    assert [os.strerror(number) in record.message for record in caplog.records] == [True]


@posix
def test_named_pipe(tmp_path: Path) -> None:
    """A named pipe in a package's place, or a link to one, is refused and not waited for."""
    os.mkfifo(tmp_path / "p.expert")
    (tmp_path / "q.expert").symlink_to(tmp_path / "p.expert")
    code = (
        "import sys\nfrom hivellm_ort.package.store import Store\n"
        "try: Store(sys.argv[1]).unpack(sys.argv[2])\nexcept Exception as error: print(type(error).__name__, error)"
    )
    for name in ("p.expert", "q.expert"):
        command = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        expected = f"LoadError {tmp_path / name}: a named pipe, a device or a socket; name a .expert file\n"
        assert expected == done.stdout


@posix
def test_forked_process_holds_nothing(tmp_path: Path, package: Path) -> None:
    """A process that is forked during a load does not keep its locks."""
    with Store(tmp_path / "store") as store:
        store.unpack(package)
        copies = [os.dup(number) for number in _open_files(store.root)]
        assert copies
    try:
        assert 0 == store.clear()
    finally:
        for number in copies:
            os.close(number)


def _open_files(root: Path) -> list[int]:
    """This process's open files under a folder, each as a fork would have it too."""
    entries = [root / "bases" / BASE_DIGEST / "decoder.json", *root.glob("packages/*/index.json")]
    wanted = [path.stat() for path in entries]
    found = []
    for number in range(3, 256):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        if any(os.path.samestat(status, other) for other in wanted):
            found.append(number)
    return found
