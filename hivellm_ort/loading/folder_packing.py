"""Packs an expert's folder into a `.expert` file."""

from __future__ import annotations

from pathlib import Path

from hivellm_ort.adapters.config import read_peft_config
from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.tensors import read_tensors
from hivellm_ort.contract import ADAPTER_FILE
from hivellm_ort.errors import LoadError
from hivellm_ort.loading.adapter_files import find_adapter_files
from hivellm_ort.package.bundle_folders import ONNX_FOLDER
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.members import as_utf8, list_bundle_members, list_root_members
from hivellm_ort.package.packing import Progress, write
from hivellm_ort.package.store import UnpackedPackage
from hivellm_ort.paths import StrPath

__all__ = ["pack"]


def pack(
    package: UnpackedPackage, output: StrPath, manifest: ExpertManifest, *, progress: Progress | None = None
) -> None:
    """Write a folder that was opened as a package to a `.expert` file.

    Packed are the manifest, the adapter, the tokenizer, the grammar, README, LICENSE and `onnx/`. Other files stay
    out. The adapter is packed at the root; if the manifest names several base models, at its own path.

    Args:
        package: The folder, from `open_package`.
        output: The file to write or replace.
        manifest: Its manifest.
        progress: Called with the number of member bytes just packed.

    Raises:
        LoadError: A file that the manifest names is missing, the adapter cannot be read, or the output cannot be
            written.
        IntegrityError: A file has a name that packages must not contain.
    """
    members = dict(list_root_members(package.root, manifest))
    if package.adapter is None and not package.bundles:
        members |= _adapters(package, manifest)
    if package.adapter is not None:
        members[f"{ONNX_FOLDER}/{ADAPTER_FILE}"] = package.adapter
    members |= dict(list_bundle_members(package.bundles))
    grammar = manifest.decoding.grammar_file
    if grammar is not None and grammar not in members:
        raise LoadError(
            f"{MANIFEST}: /training/decoding/grammar_file is {grammar!r}, which is not in the folder"
        )
    try:
        # Weights hardly compress, and a higher level takes minutes.
        write(output, list(members.items()), compresslevel=1, progress=progress)
    except OSError as error:
        raise LoadError(
            f"{output}: cannot be written: {error.strerror}; check the path and the space"
        ) from error


def _adapters(package: UnpackedPackage, manifest: ExpertManifest) -> dict[str, Path | bytes]:
    members: dict[str, Path | bytes] = {}
    bases = [base for base in manifest.base_models if base.adapters]
    for base in bases:
        files = find_adapter_files(package, manifest, base)
        read_peft_config(files.config)
        read_tensors(files.weights)
        if len(bases) == 1:
            members |= {ADAPTER_CONFIG: as_utf8(files.config), ADAPTER_WEIGHTS: files.weights}
            members |= {path.name: as_utf8(path) for path in files.texts}
        else:
            members |= {
                path.relative_to(package.root).as_posix(): as_utf8(path)
                for path in (files.config, files.weights, *files.texts)
            }
    return members
