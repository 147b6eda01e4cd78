"""Finds the files of a PEFT adapter in a package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter_files
from hivellm_ort.errors import AdapterError, IntegrityError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.package.manifest import BaseModelRef, ExpertManifest
from hivellm_ort.package.members import TOKENIZER_FILES
from hivellm_ort.package.store import UnpackedPackage

__all__ = ["AdapterFiles", "find_adapter_files"]

_DEPTH = 4  # folders searched for a checkpoint: weights/qwen3-06b/checkpoint-1250 is three


@dataclass(frozen=True)
class AdapterFiles:
    """The two files of a PEFT adapter, and the folder `own` with its own tokenizer and chat template."""

    config: Path
    weights: Path
    own: Path

    @property
    def texts(self) -> list[Path]:
        """The files of its tokenizer and chat template."""
        return [path for name in TOKENIZER_FILES if (path := self.own / name).is_file()]


def find_adapter_files(
    package: UnpackedPackage, manifest: ExpertManifest, base: BaseModelRef
) -> AdapterFiles:
    """Find the adapter of a package for one of its base models.

    The reference packager puts the adapter at the root, whatever `adapters[].path` says, so the root is searched
    first. If the manifest has several base models, the paths are searched first, because the root has room for one
    adapter only. Last come checkpoint folders: the only one, or the one named by `training.packaging_checkpoint`.

    Args:
        package: The package.
        manifest: Its manifest.
        base: One of `manifest.base_models`.

    Raises:
        AdapterError: The package has no adapter, or several and the manifest does not name one.
        IntegrityError: The SHA-256 of the weights differs from that in the manifest.
    """
    root = package.root
    named = [path for adapter in base.adapters if adapter.path for path in _places(root, adapter.path)]
    places = [*named, root] if len(manifest.base_models) > 1 else [root, *named]
    files = next((found for place in places if (found := _in(place, root)) is not None), None)
    files = files or _checkpoint(root, manifest)
    _check_digest(files, package, manifest, base)
    return files if files.texts else replace(files, own=root)


def _places(root: Path, path: str) -> Iterator[Path]:
    """Yield the possible meanings of `adapters[].path`: with and without `weights/`."""
    try:
        name = member_name(path.rstrip("/"))
    except IntegrityError:
        return  # a path on the machine of the training, or one outside the package
    if is_system_file(name):
        return  # signatures need not cover system files
    yield root / name
    yield root / "weights" / name


def _in(place: Path, root: Path) -> AdapterFiles | None:
    """Return the adapter in a folder, or that of a weights file with its configuration beside it or at the root."""
    weights = place / ADAPTER_WEIGHTS if place.is_dir() else place
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    configs = (weights.parent / ADAPTER_CONFIG, root / ADAPTER_CONFIG)
    config = next((config for config in configs if config.is_file()), None)
    return None if config is None else AdapterFiles(config, weights, weights.parent)


def _checkpoint(root: Path, manifest: ExpertManifest) -> AdapterFiles:
    found = [files for folder in _folders(root, _DEPTH) if (files := _in(folder, folder)) is not None]
    if len(found) > 1:
        training = manifest.raw.get("training")
        wanted = training.get("packaging_checkpoint") if isinstance(training, dict) else None
        chosen = [files for files in found if files.weights.parent.name == wanted]
        found = chosen or found
    if not found:
        if (root / ADAPTER_CONFIG).is_file():
            check_adapter_files(root)
        raise AdapterError(
            f"{ADAPTER_WEIGHTS} and {ADAPTER_CONFIG} are neither at the package's root nor where adapters[].path "
            "says: add them"
        )
    if len(found) > 1:
        folders = ", ".join(shown(files.weights.parent.relative_to(root).as_posix()) for files in found[:8])
        raise AdapterError(
            f"the package holds {len(found)} adapters ({folders}): name one in training.packaging_checkpoint, "
            "or copy it to the root"
        )
    return found[0]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        yield folder
        if depth > 1:
            yield from _folders(folder, depth - 1)


def _check_digest(
    files: AdapterFiles, package: UnpackedPackage, manifest: ExpertManifest, base: BaseModelRef
) -> None:
    stated = [adapter.sha256 for adapter in base.adapters if adapter.sha256]
    if stated and package.digest(files.weights) not in stated:
        index = manifest.base_models.index(base)
        raise IntegrityError(
            f"{files.weights.relative_to(package.root).as_posix()} differs from the SHA-256 that the manifest states "
            f"at /base_models/{index}/adapters: fetch the package again, or correct the manifest"
        )
