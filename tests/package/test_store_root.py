"""Where the store is when nobody says so."""

# The expected value comes first.

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import platformdirs
import pytest
from package_samples import MANIFEST

from hivellm_ort.errors import LoadError
from hivellm_ort.package.archive import write
from hivellm_ort.package.store import Store, default_root

linux = pytest.mark.skipif(sys.platform != "linux", reason="names the folders of Linux")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIVELLM_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_platforms_cache_folder() -> None:
    """Nothing set: the platform's cache folder for this name."""
    assert platformdirs.user_cache_path("hivellm-ort", appauthor=False) == default_root()
    assert default_root() == Store().root


@linux
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/home/u/.cache/hivellm-ort"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/hivellm-ort"),
        ({"XDG_CACHE_HOME": "/x", "HIVELLM_HOME": ""}, "/x/hivellm-ort"),
        ({"XDG_CACHE_HOME": "/x", "HIVELLM_HOME": "/h"}, "/h"),
        ({"HIVELLM_HOME": "~/h"}, "/home/u/h"),
    ],
)
def test_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    """HIVELLM_HOME takes precedence over the platform's folder."""
    for name, value in {"HOME": "/home/u", **variables}.items():
        monkeypatch.setenv(name, value)
    assert Path(expected) == default_root()


def test_relative_home_is_below_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative HIVELLM_HOME gives an absolute root, which does not change with the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIVELLM_HOME", "here")
    assert Path(os.getcwd(), "here") == Store().root  # noqa: PTH109


@pytest.mark.parametrize("error", [False, True], ids=["older", "newer"])
def test_no_home(monkeypatch: pytest.MonkeyPatch, error: bool) -> None:
    """No home folder is a LoadError that names the variable to set, whichever way platformdirs says so."""

    def homeless(*_args: object, **_options: object) -> Path:
        if error:
            raise RuntimeError("could not determine the home directory")
        return Path("~/.cache/hivellm-ort")

    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        Store()


def test_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HIVELLM_HOME of a user that does not exist is a LoadError."""
    monkeypatch.setenv("HIVELLM_HOME", "~no-such-user-here/x")
    monkeypatch.setattr(Path, "expanduser", _no_home)
    with pytest.raises(LoadError, match="HIVELLM_HOME"):
        default_root()


def _no_home(_path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_paths_are_short(tmp_path: Path) -> None:
    """Below its root a store adds at most 80 characters to a member's name: Windows allows 259 in all."""
    store = Store(tmp_path / "store")
    member = "weights/" + "n" * 100 + ".json"
    write(tmp_path / "p.expert", [("manifest.json", json.dumps(MANIFEST).encode()), (member, b"{}")])
    seen: set[str] = set()

    def look(_count: int = 0) -> None:
        paths = (path.relative_to(store.root).as_posix() for path in store.root.rglob("*"))
        seen.update(path.removesuffix(member) for path in paths)

    store.unpack(tmp_path / "p.expert", progress=look)
    store.prepare_adapter("ab" * 32, lambda: b"adapter")
    look()
    assert {"packages", "adapters", "blobs", "tmp"} <= seen
    assert 80 == max(len(path) for path in seen if path.endswith("/"))
    assert 80 + len("manifest.json") == max(map(len, seen))
