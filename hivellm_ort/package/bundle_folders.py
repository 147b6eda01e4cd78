"""The base bundles of a package: one in `onnx/`, or one for each target in `onnx/<target>/`.

Each `decoder.json` lists all files of its bundle. A file that several targets share is stored once. If a listed file
is not in the bundle's folder, the file of the same name, size and digest in another bundle's folder is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import ADAPTER_FILE, DECODER_JSON, DecoderConfig, FileRecord
from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.filenames import shown
from hivellm_ort.package.archive import Limits, Member, sha256_file
from hivellm_ort.package.filecheck import Check, FileChecker

__all__ = [
    "MAX_TARGETS",
    "ONNX_FOLDER",
    "BundleFiles",
    "bundle_folders",
    "bundle_members",
    "check_folders",
    "check_members",
    "find_bundle_fault",
    "find_bundle_files",
]

ONNX_FOLDER = "onnx"
"""The folder of a package with the bundles and the prepared adapter. All targets use the same adapter."""

MAX_TARGETS = 16
"""Most bundles of one package."""


@dataclass(frozen=True, slots=True)
class BundleFiles:
    """The files of one bundle.

    Attributes:
        folder: Its folder, with its `decoder.json`.
        listed: Size and digest of every other file, from `decoder.json`.
        places: The paths of all files by their names in the bundle, `decoder.json` first.
    """

    folder: Path
    listed: Mapping[str, FileRecord]
    places: Mapping[str, Path]

    @property
    def whole(self) -> bool:
        """Whether all files are in the folder."""
        return all(path == self.folder / name for name, path in self.places.items())


def bundle_folders(onnx: Path) -> tuple[Path, ...]:
    """Return the folders of a package's bundles: `onnx/` itself, or those of its targets by name; empty for none."""
    if (onnx / DECODER_JSON).is_file():
        return (onnx,)
    return tuple(sorted(path.parent for path in onnx.glob(f"*/{DECODER_JSON}") if path.is_file()))


def find_bundle_files(folders: Sequence[Path]) -> list[BundleFiles]:
    """Find the files of all bundles of one package. A missing file gets the path where it should be.

    Raises:
        IntegrityError: There are too many bundles, the folder of one of several is not named after its target, or a
            `decoder.json` lists a forbidden name.
        ManifestError: A `decoder.json` is missing or malformed.
    """
    if len(folders) > MAX_TARGETS:
        raise IntegrityError(f"{ONNX_FOLDER}/ has {len(folders)} bundles; {MAX_TARGETS} is the most")
    lists = {folder: _listed(folder, several=len(folders) > 1) for folder in folders}
    found: dict[tuple[str, FileRecord], Path] = {}
    for folder, listed in lists.items():
        for name, record in listed.items():
            if (folder / name).is_file():
                found.setdefault((name, record), folder / name)
    result = []
    for folder, listed in lists.items():
        places = {DECODER_JSON: folder / DECODER_JSON}
        for name, record in sorted(listed.items()):
            own = folder / name
            places[name] = own if own.is_file() else found.get((name, record), own)
        result.append(BundleFiles(folder, listed, places))
    return result


def bundle_members(members: Sequence[Member]) -> dict[str, Member]:
    """Return the members of a package that belong to its bundles, by name."""
    own = {member.name: member for member in members if member.name.startswith(f"{ONNX_FOLDER}/")}
    own.pop(f"{ONNX_FOLDER}/{ADAPTER_FILE}", None)
    return own


def check_members(root: Path, members: Sequence[Member], limits: Limits) -> list[BundleFiles]:
    """Compare the extracted files of a package's bundles with their lists.

    Args:
        root: Folder to which the package was extracted.
        members: All its members.
        limits: Limits on the unpacked size. A file that several bundles share counts for each of them.

    Raises:
        IntegrityError: A file is missing, not listed, or differs in size or digest, or as for `find_bundle_files`.
        ManifestError: As for `find_bundle_files`.
    """
    own = bundle_members(members)
    folders = bundle_folders(root / ONNX_FOLDER)
    if own and not folders:
        raise IntegrityError(
            f"{ONNX_FOLDER}/{DECODER_JSON} is missing beside {min(own)}; export the package again"
        )
    bundles = find_bundle_files(folders)
    unlisted, total = set(own), 0
    for bundle in bundles:
        where = bundle.folder.relative_to(root).as_posix()
        for name, path in bundle.places.items():
            member = own.get(path.relative_to(root).as_posix())
            if member is None:
                raise _differs(where, name, f"is listed in {DECODER_JSON} but not in the package")
            if name != DECODER_JSON:
                _compare(where, name, member, bundle.listed[name])
            unlisted.discard(member.name)
            total += member.size
    if unlisted:
        raise _differs(
            ONNX_FOLDER, min(unlisted).removeprefix(f"{ONNX_FOLDER}/"), f"is not listed in {DECODER_JSON}"
        )
    if total > limits.max_total_bytes:
        raise IntegrityError(
            f"{ONNX_FOLDER}/ has more than {limits.max_total_bytes} bytes (max_total_bytes) if the files that "
            "targets share count for each target; raise the limit only for a package you trust"
        )
    return bundles


def check_folders(folders: Sequence[Path], check: Check = "size") -> None:
    """Compare the files of bundles that were opened in place with their lists. Unlisted files are ignored.

    Args:
        folders: All bundles of one package, or one separate bundle.
        check: `size` reads no file, `digest` reads all.

    Raises:
        IntegrityError: A file is missing, or differs in size or digest, or as for `find_bundle_files`.
        ManifestError: As for `find_bundle_files`.
    """
    checks = FileChecker(check)
    try:
        bundles = find_bundle_files(folders)
    except (IntegrityError, ManifestError) as error:
        where = folders[0] if len(folders) == 1 else folders[0].parent
        raise type(error)(f"{where}: {error}") from error
    for bundle in bundles:
        for name, record in sorted(bundle.listed.items()):
            fault = checks.find_fault(bundle.places[name], record.size, record.sha256)
            if fault is not None:
                raise IntegrityError(
                    f"{bundle.folder}: file {shown(name)}, listed in {DECODER_JSON}, {fault}; "
                    "fetch or export the bundle again"
                )


def find_bundle_fault(folder: Path, checks: FileChecker) -> str | None:
    """Return what is wrong with a stored bundle, or None. Its folder is named by the digest of its `decoder.json`."""
    try:
        if sha256_file(folder / DECODER_JSON) != folder.name:
            return f"{DECODER_JSON} differs from its SHA-256"
        listed = DecoderConfig.from_file(folder / DECODER_JSON).files
    except OSError:
        return f"{DECODER_JSON} is missing"
    except LoadError as error:
        return str(error)
    for name, record in listed.items():
        fault = checks.find_fault(folder / name, record.size, record.sha256)
        if fault is not None:
            return f"{shown(name)} {fault}"
    return None


def _listed(folder: Path, *, several: bool) -> Mapping[str, FileRecord]:
    """Return the list of one bundle. If there are several, its folder must be named after its target."""
    if not several:
        return DecoderConfig.from_file(folder / DECODER_JSON).files
    where = f"{ONNX_FOLDER}/{folder.name}/"
    try:
        config = DecoderConfig.from_file(folder / DECODER_JSON)
    except (IntegrityError, ManifestError) as error:
        raise type(error)(f"{where} {error}") from error
    if config.target != folder.name:
        raise IntegrityError(
            f"{where} {DECODER_JSON} is for target {shown(config.target)}, but the folder has another name; "
            "export the package again"
        )
    return config.files


def _compare(where: str, name: str, member: Member, record: FileRecord) -> None:
    if member.size != record.size:
        raise _differs(where, name, f"has {member.size} bytes, {DECODER_JSON} lists {record.size}")
    if member.sha256 != record.sha256:
        raise _differs(where, name, f"differs from the SHA-256 in {DECODER_JSON}")


def _differs(where: str, name: str, fault: str) -> IntegrityError:
    return IntegrityError(f"{where}/ file {shown(name)} {fault}; fetch or export the package again")
