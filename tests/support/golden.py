"""Helpers for golden packages: their files, folders, bundles and variants."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivellm_ort.contract import DECODER_JSON
from hivellm_ort.package.archive import write
from hivellm_ort.package.bundle_folders import ONNX_FOLDER

__all__ = ["BASE", "GOLDEN", "PEFT", "adapter_folder", "bundle", "golden", "members", "with_base"]

GOLDEN = Path(__file__).parent.parent / "golden"
BASE = GOLDEN / "base"
"""The fp32 base bundle of the thin packages."""

PEFT = GOLDEN / "peft"
"""The folder of the adapter of `dora` in PEFT's form, without a manifest."""


def golden(name: str) -> Path:
    """Return the path of a golden package."""
    return GOLDEN / f"{name}.expert"


def members(package: Path) -> dict[str, bytes]:
    """Return the files of a package by name, in their order."""
    with tarfile.open(package) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def adapter_folder(name: str, folder: Path) -> Path:
    """Write the sources of an expert, its unsigned manifest and the files of PEFT, and return the folder."""
    folder.mkdir(parents=True)
    for member, data in members(golden(name)).items():
        if "/" not in member:
            (folder / member).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.pop("integrity", None)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def bundle(name: str, folder: Path, target: str = "") -> Path:
    """Write the base bundle of a package and return the folder. `target` selects one of several bundles."""
    folder.mkdir(parents=True)
    prefix = f"{ONNX_FOLDER}/{target}/" if target else f"{ONNX_FOLDER}/"
    files = members(golden(name))
    listed = [*json.loads(files[prefix + DECODER_JSON])["files"], DECODER_JSON]
    for file in listed:
        # A file that two targets have alike is in the package once.
        found = [prefix + file, *(other for other in files if other.endswith(f"/{file}"))]
        (folder / file).write_bytes(next(files[path] for path in found if path in files))
    return folder


def with_base(
    name: str,
    package: Path,
    *,
    base: Path = BASE,
    manifest: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a thin golden package with its base inside, as the exporter packs it without `--thin`.

    Args:
        name: Of the golden package.
        package: The file to write.
        base: A bundle of the same weights.
        manifest: Fields to set in its manifest.
        files: Files of the base to replace.

    Returns:
        `package`.
    """
    thin = members(golden(name))
    if manifest:
        thin["manifest.json"] = json.dumps({**json.loads(thin["manifest.json"]), **manifest}).encode()
    contents = {path.name: path.read_bytes() for path in sorted(base.iterdir())} | dict(files or {})
    if files:
        document = json.loads(contents[DECODER_JSON])
        document["files"] |= {
            file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for file, data in files.items()
        }
        contents[DECODER_JSON] = json.dumps(document).encode()
    listed = [DECODER_JSON, *(file for file in contents if file != DECODER_JSON)]
    write(
        package,
        [*thin.items(), *((f"{ONNX_FOLDER}/{file}", contents[file]) for file in listed)],
        compresslevel=1,
    )
    return package
