"""Links in the folders that an export reads."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.exporting import Refusal, copied

from hivellm_export.base_model import load_base
from hivellm_export.huggingface.files import check_link
from hivellm_ort.errors import ExportError

ModelFolder = Callable[[str], Path]

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture
def base(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A base model's folder that a test may change."""
    return copied(model_folder("llama"), tmp_path / "base")


@pytest.fixture
def snapshot(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A folder as the hub's cache keeps it: each file is a link to a blob, named by a digest, of the repository."""
    blobs = copied(model_folder("llama"), tmp_path / "hub" / "models--org--name" / "blobs")
    made = blobs.parent / "snapshots" / COMMIT
    made.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"{number:040x}")
        (made / file.name).symlink_to(Path("../../blobs") / blob.name)
    return made


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.json", "adapter_config.json"])
def test_link_in_an_experts_folder(
    name: str, expert_folder: Callable[..., Path], base: Path, refused: Refusal, tmp_path: Path
) -> None:
    """No link of an expert's folder is followed, not even to the file that was there."""
    expert = copied(expert_folder("lora"), tmp_path / "expert")
    elsewhere = tmp_path / "elsewhere"
    if (expert / name).exists():
        (expert / name).rename(elsewhere)
    else:
        elsewhere.write_text("a private key")
    (expert / name).symlink_to(elsewhere)
    fault = f"{expert}: {name!r} is a link to {str(elsewhere)!r}, which is not followed: put the file itself there"
    assert ("IntegrityError", fault) == refused(base, expert)


@pytest.mark.parametrize("name", FILES)
def test_link_out_of_a_base(name: str, base: Path, refused: Refusal, tmp_path: Path) -> None:
    """A link that leads out of a base's or tokenizer's folder is refused by name."""
    other = copied(base, tmp_path / "other")
    (other / name).rename(tmp_path / "elsewhere")
    (other / name).symlink_to("../elsewhere")
    where = f"{other}: {name!r} is a link to '../elsewhere'"
    fault = f"{where}, which is outside of the folder: put the file itself there"
    assert ("ExportError", fault) == refused(other)
    if name.startswith("tokenizer"):
        assert ("ExportError", fault) == refused(base, options=("--tokenizer", str(other)))


def test_link_inside_a_base(base: Path) -> None:
    """A link to a file or folder of the same folder is followed; a circle of folders does no harm."""
    (base / "original").mkdir()
    (base / "model.safetensors").rename(base / "original" / "weights")
    (base / "model.safetensors").symlink_to("original/weights")
    (base / "original" / "again").symlink_to("..", target_is_directory=True)
    assert "base" == load_base(base).name


def test_snapshot_of_the_hub(snapshot: Path, tmp_path: Path) -> None:
    """The hub's cache is read, also by way of a link to the snapshot."""
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    assert "name" == load_base(snapshot).name == load_base(tmp_path / "link").name


def test_snapshot_that_leads_away(snapshot: Path, tmp_path: Path) -> None:
    """A snapshot's link to another repository, or to a blob that is a link itself, is refused."""
    blob = (snapshot / "tokenizer_config.json").resolve()
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match=r"'tokenizer_config\.json' is a link .* outside of the folder"):
        load_base(snapshot)
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (tmp_path / "elsewhere").rename(other / "0")
    (snapshot / "tokenizer_config.json").unlink()
    (snapshot / "tokenizer_config.json").symlink_to("../../../models--org--other/blobs/0")
    with pytest.raises(ExportError, match=r"'tokenizer_config\.json' is a link .* outside of the folder"):
        load_base(snapshot)


def test_snapshot_outside_of_the_cache(snapshot: Path, tmp_path: Path) -> None:
    """What the cache allows is bound to the names of its folders."""
    moved = shutil.move(snapshot.parents[1], tmp_path / "org--name")
    with pytest.raises(ExportError, match=r"is a link .* outside of the folder"):
        load_base(Path(moved) / "snapshots" / COMMIT)


@pytest.mark.parametrize("target", ["missing", "LICENSE"])
def test_link_to_nothing(target: str, base: Path) -> None:
    """A link to nothing, or to itself, is refused though the file is not needed."""
    (base / "LICENSE").symlink_to(target)
    with pytest.raises(ExportError, match=f"'LICENSE' is a link to '{target}', which leads nowhere"):
        load_base(base)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", [*FILES, "generation_config.json"])
def test_named_pipe_in_a_base(name: str, base: Path, refused: Refusal) -> None:
    """A named pipe is refused and not waited for."""
    (base / name).unlink(missing_ok=True)
    if sys.platform != "win32":
        os.mkfifo(base / name)
    fault = f"{base}: {name!r} is a named pipe, a device or a socket, which is never opened: remove it"
    assert ("ExportError", fault) == refused(base)


def test_part_of_a_gguf_model(tmp_path: Path) -> None:
    """The further files of a model in several are held to the same as those of a folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (folder / "inside").write_bytes(b"")
    (folder / "a.gguf").symlink_to("inside")
    check_link(folder / "a.gguf")
    (folder / "b.gguf").symlink_to("../elsewhere")
    with pytest.raises(ExportError, match=r"b\.gguf: is a link to '\.\./elsewhere', which is outside"):
        check_link(folder / "b.gguf")
