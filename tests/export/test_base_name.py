"""What a base model is called, wherever its folder lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import tiny
from support.exporting import copied, edit_json

from hivellm_export.base_model import load_base
from hivellm_export.huggingface.folder import folder_name
from hivellm_ort import Expert
from hivellm_ort.cli.main import main
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import ExportError

ModelFolder = Callable[[str], Path]

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"


def made(path: Path) -> Path:
    """The folder `path`, made."""
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"models--Qwen--Qwen3-0.6B/snapshots/{COMMIT}", "Qwen3-0.6B"),
        ("models--Qwen--Qwen3-0.6B/snapshots/main", "Qwen3-0.6B"),
        (f"models--gpt2/snapshots/{COMMIT}", "gpt2"),
        (f"models--org--name--with--dashes/snapshots/{COMMIT}", "name--with--dashes"),
        ("Qwen3-0.6B", "Qwen3-0.6B"),
        ("snapshots", "snapshots"),
        ("Qwen/snapshots", "snapshots"),
        ("Qwen/Qwen3-0___6B", "Qwen3-0.6B"),
        (f"Qwen3-0.6B/{COMMIT}", "Qwen3-0.6B"),
        (f"Qwen3-0.6B/snapshots/{COMMIT}", "Qwen3-0.6B"),
        ("abcdef0123", "abcdef0123"),
    ],
)
def test_name(path: str, expected: str, tmp_path: Path) -> None:
    """The repository's name where the hub's cache named the folder by a commit, else the folder's own."""
    assert expected == folder_name(made(tmp_path / path), {})[0]


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/home/me/models/Qwen3-0.6B/", "Qwen3-0.6B"),
        ("C:\\models\\Qwen3-0.6B", "Qwen3-0.6B"),
        (f"/home/me/.cache/hub/models--Qwen--Qwen3-0.6B/snapshots/{COMMIT}", "Qwen3-0.6B"),
        (COMMIT, "above"),
        ("", "above"),
        (".", "above"),
        (5, "above"),
    ],
)
def test_name_of_a_folder_called_like_a_commit(original: object, expected: str, tmp_path: Path) -> None:
    """Outside of the cache the configuration may know the name; the report says where it is from."""
    folder = made(tmp_path / "above" / COMMIT)
    name, origin = folder_name(folder, {"_name_or_path": original})
    assert expected == name
    assert "named by a digest" in origin
    assert ("Mine", "") == folder_name(made(tmp_path / "Mine"), {"_name_or_path": "Qwen/Qwen3-0.6B"})


def test_links_slashes_and_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a snapshot, a slash at the end and `.` all give the same name."""
    folder = made(tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / COMMIT)
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(folder)
    for path in (link, Path(f"{folder}/"), Path(), folder / ".." / COMMIT):
        assert "Qwen3-0.6B" == folder_name(path, {})[0]


def test_expert_of_several_bases_finds_a_snapshot(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A bundle made of the cache's snapshot, whose files are links, is found by the name of the repository."""
    blobs = copied(model_folder("qwen2"), tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "blobs")
    snapshot = made(blobs.parent / "snapshots" / COMMIT)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    bundle = tmp_path / "home" / "models" / "some-folder"
    arguments = ["export", "--base", str(snapshot), "--output", str(bundle), "--precision", "fp32"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.stdout.startswith("name      Qwen3-0.6B: from the hub's cache folder models--")
    assert "Qwen3-0.6B" == DecoderConfig.from_file(bundle / DECODER_JSON).name
    folder = tiny.save_adapter(tmp_path / "expert", blobs, tiny.adapter_config("lora"))
    adapters = [{"type": "lora"}]
    tiny.with_manifest(folder)
    bases = [{"name": name, "adapters": adapters} for name in ("Qwen3-0.6B", "Qwen3-1.7B")]
    edit_json(folder / "manifest.json", base_models=bases)
    package = tmp_path / "tiny.expert"
    arguments = ["pack", str(folder), "--output", str(package)]
    assert 0 == CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code
    with Expert.load(package, cache_dir=tmp_path / "home", trust="off", threads=1) as expert:
        assert "Qwen3-0.6B" == expert.base.name


def test_folder_above_the_snapshot(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Who gives the repository's folder of the cache is shown the snapshot in it."""
    repository = tmp_path / "models--Qwen--Qwen3-0.6B"
    snapshot = copied(model_folder("qwen2"), repository / "snapshots" / COMMIT)
    for path in (repository, repository / "snapshots"):
        with pytest.raises(ExportError) as error:
            load_base(path)
        assert str(error.value).endswith(f"; one that has it is {snapshot}")
