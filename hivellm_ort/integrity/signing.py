"""Signs packages with our own scheme."""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.errors import LoadError, ManifestError, OptionError
from hivellm_ort.integrity.ed25519 import public_key
from hivellm_ort.integrity.keyfiles import read_private_key
from hivellm_ort.integrity.native import signed_manifest
from hivellm_ort.integrity.reference import SIGNATURE_FILE
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits, Progress, extract, write
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.paths import StrPath

__all__ = ["SignedPackage", "sign"]

_MAX_PUBLISHER = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPackage:
    """The result of `sign`.

    Attributes:
        path: The signed package.
        key: The public key of the signature.
        members: Number of files in it.
        notes: One sentence for each file that was left out or came twice, and for an integrity block replaced.
    """

    path: Path
    key: str
    members: int
    notes: tuple[str, ...]


def sign(
    package: StrPath,
    private_key: StrPath,
    *,
    publisher: str,
    output: StrPath | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> SignedPackage:
    """Sign a package. Readers see either the old file or the complete new one.

    Pickles, executables, files that macOS and Windows add, and the reference tool's `signature.sig` are left out.
    An existing integrity block is replaced, valid or not: by signing you vouch for the current content.

    Args:
        package: The `.expert` file.
        private_key: The key file that `generate_key` wrote.
        publisher: The name of the signer. Readers see it only together with your key.
        output: Path of the signed package. Default: replace the package itself.
        limits: Limits on the unpacked archive.
        progress: Called with the number of bytes that were just read (compressed) or packed.

    Raises:
        IntegrityError: The archive is damaged or unsafe, or the key file does not hold a key.
        ManifestError: `manifest.json` is missing or malformed.
        LoadError: A file cannot be read or written.
        OptionError: The publisher is empty, too long or not printable.
    """
    if not publisher.strip() or len(publisher) > _MAX_PUBLISHER or not publisher.isprintable():
        raise OptionError(f"publisher {publisher[:80]!a}: give 1 to {_MAX_PUBLISHER} printable characters")
    seed = read_private_key(private_key)
    package = Path(package)
    target = package if output is None else Path(output)
    try:
        # Beside the target, where the package needs room anyway.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".signing-") as scratch:
            files = Path(scratch) / "files"
            contents = extract(package, files, limits=limits, progress=progress)
            manifest = read_json(files / MANIFEST)
            members = [m for m in contents.members if m.name not in (MANIFEST, SIGNATURE_FILE)]
            text = signed_manifest(manifest, members, seed, publisher=publisher, created_at=_now())
            (files / MANIFEST).write_bytes(text)
            read_json(
                files / MANIFEST
            )  # fail on a manifest that readers would refuse, such as a too large one
            write(
                target,
                [(MANIFEST, text), *((m.name, files / m.name) for m in members)],
                progress=progress,
            )
    except ManifestError as error:
        raise ManifestError(f"{package}: {error}") from error
    except OSError as error:
        raise LoadError(
            f"{target}: cannot be written: {error.strerror}; check the folder and the free space"
        ) from error
    notes = list(contents.notes)
    if any(member.name == SIGNATURE_FILE for member in contents.members):
        notes.append(f"{SIGNATURE_FILE} was left out: the signature is in {MANIFEST}")
    if manifest.get("integrity") is not None:
        notes.append("the old integrity block was replaced")
    return SignedPackage(path=target, key=public_key(seed), members=len(members) + 1, notes=tuple(notes))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
