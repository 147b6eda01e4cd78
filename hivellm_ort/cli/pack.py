"""The command `hivellm-ort pack`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.errors import LoadError, ManifestError
from hivellm_ort.loading.folder_packing import pack as pack_folder
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.manifest_schema import schema_problems
from hivellm_ort.package.store import Store, open_package
from hivellm_ort.printable import printable
from hivellm_ort.progress import progress_bar

__all__ = ["pack"]


@click.command()
@click.argument("folder", type=NamedPath())
@click.option(
    "--output",
    type=NamedPath(),
    show_default="<name>-<base>.v<version>.expert",
    help="File to write.",
)
@click.option(
    "--strict", is_flag=True, help="Refuse a manifest that its schema does not allow, instead of warning."
)
@json_option("Print the file, its size and its digest as JSON.")
def pack(folder: Path, output: Path | None, strict: bool, as_json: bool) -> None:
    """Pack an expert's folder into a .expert file.

    FOLDER holds manifest.json and a PEFT adapter. Packed too, if they are there: tokenizer, chat template, grammar,
    README, LICENSE and onnx/.

    The package is not signed: use 'hivellm-ort sign'.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder}: not a folder: pass the folder of an expert")
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise ManifestError(f"{folder} has no {MANIFEST}: write it with 'hivellm-ort init {folder}'")
    package = open_package(folder, Store(), check="digest")
    manifest = ExpertManifest.from_file(path, strict=strict)
    file = output or Path(manifest.package_filename(manifest.base_models[0].short_name))
    with progress_bar(file.name) as progress:
        pack_folder(package, file, manifest, progress=progress)
    warnings = [*manifest.warnings, *schema_problems(path)]
    report = {
        "file": str(file),
        "size": file.stat().st_size,
        "sha256": sha256_file(file),
        "warnings": warnings,
    }
    if as_json:
        print_json(report)
        return
    for warning in warnings:
        echo(f"warning: {printable(warning)}", err=True)
    echo(f"{file}  {report['size']} bytes  sha256 {report['sha256']}")
