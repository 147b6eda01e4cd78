"""The first two stages of a load: open the package at a path, and verify it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.adapters.files import ADAPTER_CONFIG
from hivellm_ort.errors import AdapterError
from hivellm_ort.integrity import Trust, Verdict
from hivellm_ort.integrity import check as check_signature
from hivellm_ort.loading.peft_folder import draft_manifest
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.bundle_folders import ONNX_FOLDER
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.links import check_folder
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.store import Store, UnpackedPackage, open_package
from hivellm_ort.progress import progress_bar

__all__ = ["VerifiedPackage", "open_with_progress", "read_manifest", "verify"]

_LOG = logging.getLogger("hivellm_ort")


@dataclass(frozen=True)
class VerifiedPackage:
    """A package that may be loaded.

    Attributes:
        path: The file or folder, as the caller named it.
        files: Its files. They agree with the records of unpacking.
        verdict: The result of checking its signature. The policy allows it.
        manifest: Its manifest.
    """

    path: Path
    files: UnpackedPackage
    verdict: Verdict
    manifest: ExpertManifest


def open_with_progress(
    path: Path, store: Store, *, limits: Limits = DEFAULT_LIMITS, checking: Check = "size"
) -> UnpackedPackage:
    """Open a package as `open_package` does, with a progress bar on a terminal. Its notes are logged as INFO.

    A folder that PEFT saved needs no manifest, because `read_manifest` drafts one. A folder with graphs needs one.
    """
    peft = (path / ADAPTER_CONFIG).is_file() and not (path / ONNX_FOLDER).exists()
    if peft and not (path / MANIFEST).is_file():
        check_folder(path)
        return UnpackedPackage(
            root=path, sha256="", adapter=None, bundles=(), members=(), skipped=(), notes=()
        )
    if path.is_dir() and not (path / MANIFEST).is_file():
        below = [found.parent.name for found in sorted(path.glob(f"*/{ADAPTER_CONFIG}"))]
        if below:
            raise AdapterError(
                f"{path} has neither {MANIFEST} nor {ADAPTER_CONFIG}; there is an adapter in {', '.join(below[:5])}: "
                "name that folder"
            )
    size = path.stat().st_size if path.is_file() else None
    with progress_bar(f"unpacking {path.name}", size) as progress:
        package = open_package(path, store, limits=limits, check=checking, progress=progress)
    for note in package.notes:
        _LOG.info("%s: %s", path, note)
    return package


def read_manifest(package: UnpackedPackage) -> ExpertManifest:
    """Return the manifest of an opened package. For a PEFT folder without one, it is made from the adapter's files.

    Raises:
        ManifestError: The manifest is wrong.
        AdapterError: There is no manifest, and the adapter's files cannot be read.
    """
    path = package.root / MANIFEST
    return ExpertManifest.from_file(path) if path.is_file() else draft_manifest(package.root)


def verify(files: UnpackedPackage, path: Path, trust: Trust) -> VerifiedPackage:
    """Check the signature of an opened package, and read its manifest.

    Args:
        files: The package, from `open_with_progress`.
        path: The path of the package, for messages.
        trust: The policy and the trusted keys.

    Raises:
        IntegrityError: The policy refuses the package.
        LoadError: The package cannot be verified, or as for `read_manifest`.
    """
    verdict = check_signature(files, trust, where=str(path))
    return VerifiedPackage(path, files, verdict, read_manifest(files))
