"""An expert's folder, and the `.expert` package that is made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.adapters.files import check_adapter_files
from hivellm_ort.contract import ADAPTER_FILE
from hivellm_ort.errors import BaseMismatchError, ManifestError
from hivellm_ort.package.bundle_folders import ONNX_FOLDER
from hivellm_ort.package.links import check_folder
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.members import list_bundle_members, list_root_members
from hivellm_ort.package.packing import write
from hivellm_ort.paths import StrPath
from hivellm_ort.progress import progress_bar

__all__ = ["ExpertSource", "write_package"]


@dataclass(frozen=True)
class ExpertSource:
    """A folder with `manifest.json` and a PEFT adapter; grammar, README and licence are optional."""

    folder: Path
    manifest: ExpertManifest

    @classmethod
    def from_folder(cls, folder: StrPath) -> ExpertSource:
        """Read an expert's folder.

        Raises:
            ManifestError: `manifest.json` is missing or wrong.
            AdapterError: A file of the adapter is missing.
            IntegrityError: The folder holds a link, a device or another special file.
        """
        folder = Path(folder)
        if folder.is_dir():
            check_folder(folder)
        if not (folder / MANIFEST).is_file():
            raise ManifestError(f"{folder} has no {MANIFEST}: write it with 'hivellm-ort init {folder}'")
        try:
            manifest = ExpertManifest.from_file(folder / MANIFEST)
        except ManifestError as error:
            raise ManifestError(f"{folder.name}/{error}") from error
        check_adapter_files(folder)
        return cls(folder, manifest)

    @property
    def package_name(self) -> str:
        """`<name>-<base>.v<version>.expert`, with the first base of the manifest."""
        return self.manifest.package_filename(self.manifest.base_models[0].short_name)

    def check_base(self, source_sha256: str) -> None:
        """Check the base that the manifest pins, if it pins one.

        Args:
            source_sha256: Digest of the base's weight files.

        Raises:
            BaseMismatchError: The manifest pins another digest.
        """
        pins = [base.sha256 for base in self.manifest.base_models if base.sha256]
        if pins and source_sha256 not in pins:
            raise BaseMismatchError(
                f"{self.folder.name}/{MANIFEST}: /base_models/0/sha256 is {pins[0][:12]}…, the given base has "
                f"{source_sha256[:12]}…: the adapter belongs to another base model"
            )


def write_package(
    path: Path, source: ExpertSource, *, adapter: bytes | None, bundles: Sequence[Path]
) -> None:
    """Write a package.

    Args:
        path: The file to write.
        source: The expert.
        adapter: Its prepared adapter; None if it is merged into the bundles.
        bundles: Folders of the bundles in the package. If there are several, each has the name of its target. Empty
            for a package without a base.
    """
    members = list_root_members(source.folder, source.manifest)
    if adapter is not None:
        members.append((f"{ONNX_FOLDER}/{ADAPTER_FILE}", adapter))
    members += list_bundle_members(bundles)
    total = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for _, data in members)
    with progress_bar(path.name, total) as progress:
        # Weights hardly compress. A higher level takes longer and gains nothing.
        write(path, members, compresslevel=1, progress=progress)
