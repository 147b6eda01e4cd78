"""Links, named pipes and sockets in folders that are read in place."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from package_samples import changed
from safetensors.numpy import save_file

from hivellm_ort.cli.main import main
from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.loading.bundles import Bundle
from hivellm_ort.loading.opening import open_with_progress
from hivellm_ort.package import links
from hivellm_ort.package.links import check_folder, open_file
from hivellm_ort.package.members import as_utf8
from hivellm_ort.package.packing import write
from hivellm_ort.package.store import Store, open_package

SECRET = b"a private key"


def linked(link: Path, target: str | Path) -> None:
    """Make a symbolic link, if the system allows it."""
    try:
        link.symlink_to(target, target_is_directory=(link.parent / target).is_dir())
    except OSError:
        pytest.skip("no permission to make symbolic links")


def pipe(path: Path) -> None:
    """Make a named pipe, if the system has them."""
    if sys.platform == "win32":
        pytest.skip("no named pipes here")
    os.mkfifo(path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a secret, beside the expert's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return tmp_path / "outside"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a package without its adapter."""
    made = tmp_path / "expert"
    (made / "weights").mkdir(parents=True)
    (made / "manifest.json").write_text('{"name": "x", "version": "1.0.0"}')
    (made / "README.md").write_text("read me")
    return made


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("LICENSE", "{outside}/secret"),
        ("grammar.gbnf", "../outside/secret"),
        ("onnx", "../outside"),
        ("weights/checkpoint", "../../outside"),
        ("LICENSE", "README.md"),
        ("tokenizer.json", "../outside/missing"),
        ("LICENSE", "LICENSE"),
        ("weights/again", ".."),
        ("manifest.json", "../outside/manifest.json"),
        ("._README.md", "../outside/secret"),
        ("base", "../outside"),
        ("license", "../outside/secret"),
        ("LICENSE", "/proc/self/environ"),
        ("LICENSE", "/proc/self/fd/0"),
        ("LICENSE", "/dev/zero"),
        ("weights/a\u202eb", "../../outside\x1b[31m"),
    ],
)
def test_links(name: str, target: str, folder: Path, outside: Path, tmp_path: Path) -> None:
    """A folder with a link is not opened, packed, inspected or verified; the message names it and its target."""
    target = target.format(outside=outside)
    if name == "manifest.json":
        (folder / name).rename(outside / name)
    linked(folder / name, target)
    fault = f"{folder}: {name!a} is a link to {target!a}, which is not followed: put the file itself there"
    with pytest.raises(IntegrityError) as error:
        open_package(folder, Store(tmp_path / "store"))
    assert fault == str(error.value)
    for arguments in (["pack", "--output", str(tmp_path / "x.expert")], ["inspect"], ["verify"]):
        result = CliRunner().invoke(main, [*arguments, str(folder)])
        assert (2, f"error: {fault}\n") == (result.exit_code, result.stderr)
    assert not (tmp_path / "x.expert").exists()


def test_links_of_a_folder_without_a_manifest(folder: Path, outside: Path, tmp_path: Path) -> None:
    """A folder as PEFT saves it is held to the same, and `init` writes through no link."""
    (folder / "manifest.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    linked(folder / "adapter_model.safetensors", outside / "secret")
    with pytest.raises(IntegrityError, match=r"'adapter_model\.safetensors' is a link"):
        open_with_progress(folder, Store(tmp_path / "store"))
    (folder / "adapter_model.safetensors").unlink()
    linked(folder / "manifest.json", outside / "written")
    result = CliRunner().invoke(main, ["init", str(folder), "--force"])
    assert 2 == result.exit_code
    assert "'manifest.json' is a link" in result.stderr
    assert not (outside / "written").exists()


@pytest.mark.parametrize(
    "name", ["manifest.json", "LICENSE", "tokenizer.json", "weights/adapter_model.safetensors"]
)
def test_named_pipes(name: str, folder: Path, tmp_path: Path) -> None:
    """A named pipe is refused by name, and never opened, which would wait for ever."""
    (folder / name).unlink(missing_ok=True)
    pipe(folder / name)
    fault = (
        f"error: {folder}: {name!r} is a named pipe, a device or a socket, which is never opened: remove it\n"
    )
    for arguments in (["pack", "--output", str(tmp_path / "x.expert")], ["inspect"]):
        result = CliRunner().invoke(main, [*arguments, str(folder)])
        assert (2, fault) == (result.exit_code, result.stderr)


def test_sockets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a socket."""
    if sys.platform == "win32":
        pytest.skip("no sockets in folders here")
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
        with pytest.raises(IntegrityError, match="'s' is a named pipe, a device or a socket"):
            check_folder(folder)


def test_junctions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A junction of Windows is a link to a folder."""
    monkeypatch.setattr(os.path, "isjunction", lambda path: path.endswith("weights"), raising=False)
    with pytest.raises(
        IntegrityError, match="'weights' is a link to an unknown place, which is not followed"
    ):
        check_folder(folder)


def test_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    """The folder that is named may be a link itself; hard links are files."""
    linked(tmp_path / "link", folder)
    (folder / "LICENSE").hardlink_to(folder / "README.md")
    check_folder(tmp_path / "link")
    assert tmp_path / "link" == open_package(tmp_path / "link", Store(tmp_path / "store")).root


def test_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed is refused, because it may contain a link."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(links.os, "scandir", refuse)
    with pytest.raises(LoadError, match=r"folder '\.' cannot be listed: Permission denied; check its perm"):
        check_folder(folder)


def test_link_made_after_the_check(folder: Path, outside: Path, tmp_path: Path) -> None:
    """A file that becomes a link or a named pipe after the check is not packed either."""
    if not hasattr(os, "O_NOFOLLOW"):
        pytest.skip("opening follows links here")
    linked(folder / "tokenizer.json", outside / "secret")
    pipe(folder / "pipe")
    for read in (open_file, as_utf8, lambda path: write(tmp_path / "x.expert", [("LICENSE", path)])):
        with pytest.raises(IntegrityError, match=r"'tokenizer\.json' is a link, which is not followed"):
            read(folder / "tokenizer.json")
    with pytest.raises(IntegrityError, match="'pipe' is a named pipe"):
        write(tmp_path / "x.expert", [("LICENSE", folder / "pipe")])
    assert {"expert", "outside"} == {path.name for path in tmp_path.iterdir()}


def test_folder_that_became_a_link_after_the_check(folder: Path, outside: Path, tmp_path: Path) -> None:
    """A file is not packed through a folder that has become a link, however deep it is."""
    if os.open not in os.supports_dir_fd:
        pytest.skip("files cannot be opened from folder to folder here")
    members = [("a/b/secret", folder / "a" / "b" / "secret")]
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "secret").write_text("no secret")
    write(tmp_path / "x.expert", members)
    (folder / "a").rename(tmp_path / "a")
    (outside / "b").mkdir()
    (outside / "secret").rename(outside / "b" / "secret")
    linked(folder / "a", outside)
    with pytest.raises(IntegrityError, match="'secret' is a link, which is not followed"):
        write(tmp_path / "y.expert", members)
    (folder / "a").unlink()
    (folder / "a").mkdir()
    linked(folder / "a" / "b", outside / "b")
    with pytest.raises(IntegrityError, match="'secret' is a link, which is not followed"):
        write(tmp_path / "y.expert", members)
    assert not (tmp_path / "y.expert").exists()


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_what_is_no_file_is_not_replaced(name: str, tmp_path: Path) -> None:
    """A package is not written in the place of a named pipe, a device or a folder."""
    if name == "pipe":
        pipe(tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="There is a folder or a device of that name"):
        write(tmp_path / name, [("LICENSE", b"text")])
    assert [name] == [path.name for path in tmp_path.iterdir()]
    assert not (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "{outside}/secret",
        "../outside/secret",
        "x/../../outside/secret",
        "/proc/self/environ",
        "..\\outside\\secret",
    ],
)
def test_grammar_outside_of_the_folder(name: str, folder: Path, outside: Path, tmp_path: Path) -> None:
    """The grammar that a manifest names must be in the folder."""
    manifest = changed("/training/decoding/grammar_file", name.format(outside=outside))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    result = CliRunner().invoke(main, ["pack", "--output", str(tmp_path / "x.expert"), str(folder)])
    assert 2 == result.exit_code
    assert re.search("not in the folder|not allowed in names|absolute names", result.stderr), result.stderr
    assert not (tmp_path / "x.expert").exists()


def test_package_that_is_a_named_pipe(tmp_path: Path) -> None:
    """Signing a named pipe ends at once, and leaves nothing behind."""
    key = tmp_path / "a.key"
    assert 0 == CliRunner().invoke(main, ["keygen", str(key)]).exit_code
    pipe(tmp_path / "x.expert")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["sign", str(tmp_path / "x.expert"), "--key", str(key)])
    assert 2 == result.exit_code
    assert "x.expert: a named pipe, a device or a socket, not a .expert file; check the path" in result.stderr
    assert before == sorted(tmp_path.iterdir())


def test_bundle(tmp_path: Path, outside: Path) -> None:
    """In a base bundle of the user, links to files are followed; links to devices and pipes are not."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (outside / "decoder.json").write_text("{}")
    linked(bundle / "decoder.json", outside / "decoder.json")
    with pytest.raises(LoadError, match="/contract_version: missing"):
        Bundle.open(bundle)
    (bundle / "decoder.json").unlink()
    pipe(outside / "pipe")
    linked(bundle / "decoder.json", outside / "pipe")
    with pytest.raises(IntegrityError, match=r"'decoder\.json' is a link to .*, which is not a file"):
        Bundle.open(bundle)
