"""The first two stages of a load: a path becomes a package, and that a verified package."""

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
        files: Its files; each is as it was recorded when it was unpacked.
        verdict: What its signature is worth; the policy has let it pass.
        manifest: Its manifest.
    """

    path: Path
    files: UnpackedPackage
    verdict: Verdict
    manifest: ExpertManifest


def open_with_progress(
    path: Path, store: Store, *, limits: Limits = DEFAULT_LIMITS, checking: Check = "size"
) -> UnpackedPackage:
    """As `open_package`, with a progress bar on a terminal; none where there is no standard error at all.

    A folder that PEFT saved needs no manifest: `read_manifest` drafts one. One with graphs is a package that has lost
    its own. The notes on the package are logged as INFO.
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
    """The manifest of an opened package; of a PEFT folder without one, what its files tell.

    Raises:
        ManifestError: The manifest is wrong.
        AdapterError: There is none, and the adapter's files cannot be read.
    """
    path = package.root / MANIFEST
    return ExpertManifest.from_file(path) if path.is_file() else draft_manifest(package.root)


def verify(files: UnpackedPackage, path: Path, trust: Trust) -> VerifiedPackage:
    """Check the signature of an opened package, and read its manifest.

    Args:
        files: The package, from `open_with_progress`.
        path: What messages call it.
        trust: The policy, and whose signatures count.

    Raises:
        IntegrityError: The policy refuses the package.
        LoadError: It cannot be verified, or as `read_manifest`.
    """
    verdict = check_signature(files, trust, where=str(path))
    return VerifiedPackage(path, files, verdict, read_manifest(files))
