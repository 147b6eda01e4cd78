"""Written packages are reproducible and come out as they went in."""

# The expected value comes first.

from __future__ import annotations

import os
import tarfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import MAX_NAME_BYTES, is_system_file, member_name
from hivellm_ort.package.archive import extract, write
from hivellm_ort.package.member_names import is_never_loaded

MEMBERS: list[tuple[str, Path | bytes]] = [
    ("manifest.json", b"{}"),
    ("onnx/weights.bin", bytes(range(256)) * 300),
    ("caf\u00e9/" + "n" * 130, b"\0"),
    ("empty", b""),
]


def _is_name(text: str) -> bool:
    try:
        return member_name(text) == text and not is_never_loaded(text) and not is_system_file(text)
    except IntegrityError:
        return False


_parts = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters='/\\:<>"|?*'),
    min_size=1,
    max_size=40,
)
_names = st.lists(_parts, min_size=1, max_size=3).map("/".join).filter(_is_name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name.split("/")[0]).casefold())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(
        st.tuples(_names, st.binary(max_size=2000)), max_size=6, unique_by=lambda m: _folded(m[0])
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]) -> None:
    """Names and bytes come out as they went in, in the same order."""
    folder = tmp_path_factory.mktemp("round")
    write(folder / "p", members)
    contents = extract(folder / "p", folder / "out")
    # A file system may hand names back in another normalisation, so each is looked up by the name written.
    assert members == [(m.name, (folder / "out" / m.name).read_bytes()) for m in contents.members]


def test_same_bytes(tmp_path: Path) -> None:
    """Two runs, from bytes or from files of other times and modes, write the same package."""
    source = tmp_path / "source"
    source.write_bytes(MEMBERS[1][1])  # type: ignore[arg-type]
    os.utime(source, (1, 1))
    source.chmod(0o600)
    write(tmp_path / "first", MEMBERS)
    write(tmp_path / "second", [MEMBERS[0], (MEMBERS[1][0], source), *MEMBERS[2:]])
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert ["first", "second", "source"] == sorted(path.name for path in tmp_path.iterdir())


def test_headers_carry_nothing_else(tmp_path: Path) -> None:
    """The gzip header has no time and no name; members have no time, no owner and mode 0644."""
    write(tmp_path / "p.expert", MEMBERS)
    assert b"\x1f\x8b\x08\0\0\0\0\0" == (tmp_path / "p.expert").read_bytes()[:8]
    with tarfile.open(tmp_path / "p.expert") as archive:
        found = [(i.name, i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.isreg()) for i in archive]
    assert [(name, 0, 0, 0, "", "", 0o644, True) for name, _ in MEMBERS] == found


def test_order_matters(tmp_path: Path) -> None:
    """Members are written in the order given."""
    write(tmp_path / "p", MEMBERS[::-1])
    assert [name for name, _ in MEMBERS[::-1]] == [
        m.name for m in extract(tmp_path / "p", tmp_path / "out").members
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["../x"],
        ["a:b"],
        ["x" * (MAX_NAME_BYTES + 1)],
        ["a", "a"],
        ["a", "./a"],
        ["a", "A"],
        ["a", "a/b"],
        ["a.bin"],
    ],
)
def test_refuses_what_it_would_not_read(tmp_path: Path, names: list[str]) -> None:
    """Names that extraction refuses, skips or merges are refused before anything is written."""
    (tmp_path / "p").write_bytes(b"old")
    with pytest.raises(IntegrityError):
        write(tmp_path / "p", [(name, b"1") for name in names])
    assert b"old" == (tmp_path / "p").read_bytes()
    assert ["p"] == [path.name for path in tmp_path.iterdir()]


def test_missing_source_keeps_the_old_package(tmp_path: Path) -> None:
    """If a source cannot be read, the old package stays, and no scratch file is left."""
    (tmp_path / "p").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "p", [("a", b"1"), ("b", tmp_path / "nowhere")])
    assert b"old" == (tmp_path / "p").read_bytes()
    assert ["p"] == [path.name for path in tmp_path.iterdir()]


def test_progress_and_level(tmp_path: Path) -> None:
    """Progress counts the members' bytes, and the level changes the size only."""
    steps: list[int] = []
    write(tmp_path / "p", MEMBERS, progress=steps.append)
    assert sum(len(data) for _, data in MEMBERS if isinstance(data, bytes)) == sum(steps)
    write(tmp_path / "q", MEMBERS, compresslevel=0)
    assert (tmp_path / "p").stat().st_size < (tmp_path / "q").stat().st_size
    out = [extract(tmp_path / name, tmp_path / f"out-{name}").members for name in "pq"]
    assert out[0] == out[1]
