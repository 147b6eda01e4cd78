"""Where an export writes: one at a time, and whole whatever stops it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from placing import FILES, write

from hivellm_export import pipeline
from hivellm_export.base_model import BaseModel
from hivellm_ort import ExportError


@pytest.mark.parametrize("force", [False, True])
def test_two_exports_into_one_folder(
    force: bool, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused by name, whatever it calls the folder; the first ends well."""
    started, go = threading.Event(), threading.Event()
    load_base = pipeline.load_base

    def slow(*arguments: Path | None) -> BaseModel:
        started.set()
        assert go.wait(60)
        return load_base(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "load_base", slow)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    base, output = model_folder("llama"), tmp_path / "out"
    if force:
        output.mkdir()
        (output / "mine.txt").write_text("kept")
    first = threading.Thread(
        target=pipeline.export, args=(base, [], output), kwargs={"force": force, "verify": False}
    )
    first.start()
    try:
        assert started.wait(60)
        for name in ("out", str(output), "link/out", "./link/../" + tmp_path.name + "/out"):
            with pytest.raises(ExportError, match="another export writes there now"):
                pipeline.export(base, [], name, force=force, verify=False)
    finally:
        go.set()
        first.join()
    assert (output / "decoder.json").is_file()
    assert force == (output / "mine.txt").is_file()
    assert {"link", "out"} == {path.name for path in tmp_path.iterdir()}


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from placing import write
left = int(sys.argv[2])
def counted(method):
    def move(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return method(*arguments)
    return move
Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
write(Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("moves", range(8))
def test_killed_between_two_moves(moves: int, tmp_path: Path) -> None:
    """With a `decoder.json` all files are of its version, a folder is of one, and the next export is whole."""
    output = tmp_path / "out"
    write(output, "old")
    arguments = [sys.executable, "-c", KILLED, str(output), str(moves), str(Path(__file__).parent)]
    assert 9 == subprocess.run(arguments, timeout=60, check=False).returncode or moves == 7
    versions = {path.name: path.read_text() for path in output.iterdir() if path.is_file()}
    if "decoder.json" in versions:
        assert set(FILES) == set(versions)
        assert 1 == len(set(versions.values()))
    if (output / "base").exists():
        inside = [path.read_text() for path in (output / "base").iterdir()]
        assert (2, 1) == (len(inside), len(set(inside)))
    write(output, "newest")
    files = [path for path in output.rglob("*") if path.is_file()]
    assert ({"newest"}, 6) == ({path.read_text() for path in files}, len(files))
    assert ["out"] == [path.name for path in tmp_path.iterdir()]


def test_an_empty_folder_and_a_link_to_it(tmp_path: Path) -> None:
    """An output that is there and empty is used, through a link too."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    write(tmp_path / "link", "new")
    assert "new" == (tmp_path / "real" / "decoder.json").read_text()
    assert {"link", "real"} == {path.name for path in tmp_path.iterdir()}
